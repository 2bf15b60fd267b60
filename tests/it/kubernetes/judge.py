"""Reads manifests from standard input, holds each against the schemas that Kubernetes publishes, of the oldest version
that they are for and of the newest that is known, and prints them as JSON. Says of a kind that is not Kubernetes' own
that there is no schema, and prints it all the same."""

import json
import sys

import kubernetes_validate
import yaml

OLDEST = "1.30"

manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]
without_schema = []
for manifest in manifests:
    kind = manifest.get("kind")
    for version in (OLDEST, kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            without_schema.append(kind)
        except kubernetes_validate.ValidationError as error:
            sys.exit(f"{kind}: {'.'.join(map(str, error.path))}: {error.message}")
json.dump({"manifests": manifests, "without_schema": sorted(set(without_schema))}, sys.stdout)
