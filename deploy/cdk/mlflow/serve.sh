#!/bin/sh
# The database password, the first user (MLFLOW_AUTH_ADMIN_USERNAME and _PASSWORD) and the session key of the web pages
# (MLFLOW_FLASK_SERVER_SECRET_KEY) are variables set from Secrets Manager, so that they appear on no command line.
set -eu
: "${MLFLOW_BACKEND_STORE_URI:=postgresql+psycopg2://$DB_USER:$DB_PASSWORD@$DB_HOST:$DB_PORT/mlflow?sslmode=require}"
export MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_CONFIG_PATH="$HOME/auth.ini"
umask 077
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $MLFLOW_BACKEND_STORE_URI
INI
exec mlflow server --app-name basic-auth --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-2}" \
  --serve-artifacts --artifacts-destination "s3://$ARTEFACT_BUCKET/artefacts" --allowed-hosts "$ALLOWED_HOSTS"
