# Sourced by the scripts of the image: sets the address of the database, and writes the settings of authentication.
# Passwords are variables set from Secrets Manager, so that they appear on no command line.
: "${MLFLOW_BACKEND_STORE_URI:=postgresql+psycopg2://$DB_USER:$DB_PASSWORD@$DB_HOST:$DB_PORT/mlflow?sslmode=require}"
export MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_CONFIG_PATH="$HOME/auth.ini"
umask 077
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $MLFLOW_BACKEND_STORE_URI
INI
