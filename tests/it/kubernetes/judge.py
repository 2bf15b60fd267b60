"""Reads manifests from standard input, and holds each against its published schema.

Of Kubernetes' own kinds these are the schemas of the oldest version that the manifests are for and of the newest that is
known, strictly. Of the Prometheus operator's they are models made from its definitions, which drop what they do not know:
so what comes out has to be what went in.
"""

import json
import sys

import kubernetes_validate
import yaml

OLDEST = "1.30"
OPERATORS = "monitoring.coreos.com/v1"


def judge_kubernetes(manifest):
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def judge_operators(manifest):
    # Takes seconds.
    from cloudcoil.models.prometheus_operator import v1

    model = getattr(v1, manifest["kind"]).model_validate(manifest)
    known = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    if known != manifest:
        raise ValueError(f"of {json.dumps(manifest)} the operator knows {json.dumps(known)}")


for manifest in yaml.safe_load_all(sys.stdin):
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    try:
        (judge_operators if manifest["apiVersion"] == OPERATORS else judge_kubernetes)(manifest)
    except (ValueError, kubernetes_validate.SchemaNotFoundError, kubernetes_validate.ValidationError) as error:
        sys.exit(f"{name}: {error}")
    print(f"good: {name}")
