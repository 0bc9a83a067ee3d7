#!/bin/sh
# Start the server. It refuses a database that is not at its own version of the schema: migrate.sh does that, once, before
# servers start, because two of them would run the same migration at the same time.
# The administrator (MLFLOW_AUTH_ADMIN_USERNAME and _PASSWORD) and the session key of the web pages
# (MLFLOW_FLASK_SERVER_SECRET_KEY) are variables set from Secrets Manager.
set -eu
here=$(dirname "$0")
. "$here/settings.sh"
python "$here/migrate.py" --check
exec mlflow server --app-name basic-auth --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-2}" \
  --serve-artifacts --artifacts-destination "s3://$ARTEFACT_BUCKET/artefacts" --allowed-hosts "$ALLOWED_HOSTS"
