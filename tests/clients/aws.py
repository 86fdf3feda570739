"""Prints as JSON what is wrong in parameters of `aws ec2 register-image`, by Amazon's own model of the call.

Argument: the file with the parameters. botocore, on which Amazon's command line is built, has the model and validates
names, types and required members. It leaves the values of enumerations to the server, so this program compares them
with those in the model.
"""

import json
import sys

from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator


def unknown_values(shape, value, path):
    """The texts that an enumeration of the model does not have."""
    if shape.type_name == "structure":
        for name, member in shape.members.items():
            if name in value:
                yield from unknown_values(member, value[name], f"{path}.{name}")
    elif shape.type_name == "list":
        for index, entry in enumerate(value):
            yield from unknown_values(shape.member, entry, f"{path}[{index}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: {value} is not one of {', '.join(shape.enum)}"


def findings(parameters):
    service = ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")
    shape = service.operation_model("RegisterImage").input_shape
    report = ParamValidator().validate(parameters, shape)
    if report.has_errors():
        return report.generate_report().splitlines()
    return list(unknown_values(shape, parameters, "RegisterImage"))


with open(sys.argv[1], encoding="utf-8") as file:
    print(json.dumps(findings(json.load(file))))
