#!/bin/sh
# Migrate the database to the schema of the image's MLflow, and set its users. Runs as a task of its own before servers
# start. In addition to serve.sh's variables it needs MLFLOW_JOBS_USERNAME and MLFLOW_JOBS_PASSWORD.
set -eu
here=$(dirname "$0")
. "$here/settings.sh"
exec python "$here/migrate.py"
