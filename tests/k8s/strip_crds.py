"""Makes the schemas in tests/k8s/schemas from KubeRay's CRDs; run by hand for a new KubeRay.

    python -m tests.k8s.strip_crds FOLDER

FOLDER has KubeRay's ray.io_*.yaml (v1.7.0: helm-chart/kuberay-operator/crds, Apache-2.0). Of them
stay the structure and the types of version v1. Pod templates are left open: what is in there is
checked against Kubernetes' own schema of pods.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import yaml

KINDS: Final = ("rayservices", "rayjobs")
SCHEMAS: Final = Path(__file__).parent / "schemas"
OPEN: Final = ("template", "submitterPodTemplate", "status", "metadata")
KEPT: Final = ("type", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "maxLength")


def main() -> None:
    """Write them."""
    for kind in KINDS:
        crd = yaml.safe_load(Path(sys.argv[1], f"ray.io_{kind}.yaml").read_text())
        [version] = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
        schema = strip(version["schema"]["openAPIV3Schema"])
        text = json.dumps(schema, indent=1, sort_keys=True)
        (SCHEMAS / f"{crd['spec']['names']['singular']}.json").write_text(text + "\n")


def strip(schema: dict[str, Any]) -> dict[str, Any]:
    """Return it as JSON Schema that refuses what it does not know."""
    kept: dict[str, Any] = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
        kept["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "items" in schema:
        kept["items"] = strip(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = strip(schema["additionalProperties"])
    if "properties" in schema:
        properties = schema["properties"]
        kept["properties"] = {
            name: {"type": "object"} if name in OPEN else strip(value)
            for name, value in properties.items()
        }
        kept["additionalProperties"] = False
        # API servers fill in defaults before they look.
        required = [
            name for name in schema.get("required", []) if "default" not in properties[name]
        ]
        if required:
            kept["required"] = required
    return kept


if __name__ == "__main__":
    main()
