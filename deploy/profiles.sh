#!/usr/bin/env bash
# Write a profile for each NAME=ROLE_ARN to ~/.aws/config, for builds in the delivery pipeline: programs that use the
# profile assume the role with the credentials of the build, and renew it for as long as they run.
set -eu
config=${AWS_CONFIG_FILE:-$HOME/.aws/config}
mkdir -p "$(dirname "$config")"
for one in "$@"; do
	name=${one%%=*} arn=${one#*=}
	case $arn in
	arn:*) ;;
	*) echo "profiles.sh: $one: NAME=ROLE_ARN expected" >&2 && exit 2 ;;
	esac
	printf '[profile %s]\nrole_arn = %s\ncredential_source = EcsContainer\nrole_session_name = encore-delivery\n\n' \
		"$name" "$arn" >>"$config"
done
