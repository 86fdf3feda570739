#!/usr/bin/env python3
"""kubevirt_types.py FOLDER FILE...: reads manifests with PyYAML and prints a program in TypeScript. The compiler accepts
the program if each manifest has the type of its kind in FOLDER, which has the types of KubeVirt and Kubernetes."""
import json
import sys

import yaml

TYPES = {
    "PersistentVolumeClaim": "kubernetes.IoK8sApiCoreV1PersistentVolumeClaim",
    "Secret": "kubernetes.IoK8sApiCoreV1Secret",
    "Service": "kubernetes.IoK8sApiCoreV1Service",
    "VirtualMachine": "kubevirt.V1VirtualMachine",
}

folder, *paths = sys.argv[1:]
for name in ["kubernetes", "kubevirt"]:
    print(f"import type * as {name} from {json.dumps(f'{folder}/{name}/index')};")
documents = [one for path in paths for one in yaml.safe_load_all(open(path, encoding="utf-8"))]
for number, document in enumerate(documents):
    print(f"export const manifest{number}: {TYPES[document['kind']]} = {json.dumps(document, indent=1)};")
