#!/bin/sh
# The database's password and the first user's come as variables from the secrets store: they stand in no command line.
set -eu
export MLFLOW_BACKEND_STORE_URI="postgresql://$DB_USER:$DB_PASSWORD@$DB_HOST:$DB_PORT/mlflow?sslmode=require"
export MLFLOW_AUTH_CONFIG_PATH="$HOME/auth.ini"
umask 077
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $MLFLOW_BACKEND_STORE_URI
admin_username = $ADMIN_USER
admin_password = $ADMIN_PASSWORD
INI
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 --serve-artifacts \
  --artifacts-destination "s3://$ARTEFACT_BUCKET/artefacts" --allowed-hosts "$ALLOWED_HOSTS"
