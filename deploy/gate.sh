#!/usr/bin/env bash
# Decide whether what ran in one stage may go to another: deploy/gate.sh CANDIDATE PRODUCTION
#
# Uses the profiles run-CANDIDATE and run-PRODUCTION, whose roles the stages' own stacks make. Those of production do
# not exist before its first deployment, so lookup-PRODUCTION finds out whether there has been one. PRODUCTION_REGION:
# where production is, if not in AWS_REGION.
set -eu -o pipefail
candidate=$1 production=$2
facts=build/facts

there() { # PROFILE COMMAND...
	AWS_REGION=${PRODUCTION_REGION:-${AWS_REGION:-}} AWS_PROFILE=$1 "${@:2}"
}

AWS_PROFILE=run-$candidate encore deploy facts --stage "$candidate" --out "$facts/$candidate.json"
deployed=$(there "lookup-$production" encore deploy deployed --stage "$production")
case $deployed in
yes) there "run-$production" encore deploy facts --stage "$production" --out "$facts/$production.json" ;;
no) encore deploy facts --stage "$production" --none --out "$facts/$production.json" ;;
*) echo "gate.sh: yes or no expected, $deployed found" >&2 && exit 1 ;;
esac
encore deploy gate "$facts/$candidate.json" "$facts/$production.json" ${TOLERANCE:+--tolerance "$TOLERANCE"}
