//! Descriptions of machines for KubeVirt, libvirt and Terraform, which an image has beside its files. They are the
//! examples of the documentation, with the version and the command line of the image.

use serde_json::Value;

use crate::form::ImageForm;
use crate::inputs::CMDLINE;

const KUBEVIRT: &str = include_str!("../../docs/examples/kubevirt.yaml");
const KERNEL_BOOT: &str = include_str!("../../docs/examples/kubevirt-kernelboot.yaml");
const LIBVIRT: &str = include_str!("../../docs/examples/libvirt.xml");
const TERRAFORM_LIBVIRT: &str = include_str!("../../docs/examples/terraform-libvirt.tf");
const TERRAFORM_OPENSTACK: &str = include_str!("../../docs/examples/terraform-openstack.tf");

/// Stands for the version of the image in each example. The XML comment has none: a version may contain `--`, which
/// ends a comment.
const VERSION: &str = "VERSION";
/// Begins each document of a YAML file.
const DOCUMENT: &str = "---\n";
/// What the example for `kernelBoot` says of the documents that it takes from the other one, and what replaces it in a
/// file with these documents.
const OTHER_DOCUMENTS: [&str; 2] = [
    "# The Secret, the PersistentVolumeClaim and the Service are those of kubevirt.yaml.\n",
    "# Replace REGISTRY, and the administrator by the key that `alknet identity` prints.\n",
];
/// What differs in the example of Terraform for libvirt if the disk has the form raw. The volume of the machine keeps
/// its format, because a volume on top of another one is always qcow2.
const RAW_VOLUME: [[&str; 2]; 4] = [
    ["alknet_VERSION.qcow2", "alknet_VERSION.raw"],
    ["the form qcow2", "the form raw"],
    ["alknet-image.qcow2", "alknet-image.raw"],
    ["  format = \"qcow2\"", "  format = \"raw\""],
];

/// A description of a machine.
#[derive(Debug)]
pub(crate) struct MachineExample {
    /// The name of its file.
    pub(crate) file: String,
    pub(crate) text: String,
}

/// The descriptions of machines that start from the files of `form`, whose kernel command line is `cmdline`.
pub(crate) fn of_form(form: ImageForm, version: &str, cmdline: &str) -> Vec<MachineExample> {
    let raw = |example: &str| example.replace("qcow2", "raw");
    let examples = match form {
        ImageForm::Containerdisk => vec![(".yaml", KUBEVIRT.to_owned())],
        ImageForm::Kernelboot => vec![(".yaml", kernel_boot())],
        ImageForm::Qcow2 => vec![
            ("-libvirt.xml", LIBVIRT.to_owned()),
            ("-libvirt.tf", TERRAFORM_LIBVIRT.to_owned()),
            ("-openstack.tf", TERRAFORM_OPENSTACK.to_owned()),
        ],
        ImageForm::Raw => vec![
            ("-libvirt.xml", raw(LIBVIRT)),
            ("-libvirt.tf", raw_volume()),
            ("-openstack.tf", raw(TERRAFORM_OPENSTACK)),
        ],
        _ => Vec::new(),
    };
    let named = |(ending, text): (&str, String)| MachineExample {
        file: format!("alknet_{version}-{form}{ending}"),
        // The command line comes last: it may contain any word.
        text: text.replace(VERSION, version).replace(
            &kernel_args(CMDLINE),
            &kernel_args(&Value::from(cmdline).to_string()),
        ),
    };
    examples.into_iter().map(named).collect()
}

/// The machine without firmware, with the other documents of KubeVirt's example: an owner may build this form alone.
fn kernel_boot() -> String {
    let [said, instead] = OTHER_DOCUMENTS;
    let machine = KERNEL_BOOT.replace(said, instead);
    // The first part is a comment, about the other form.
    let others = KUBEVIRT.split(DOCUMENT).skip(1);
    let others = others.filter(|document| !document.contains("kind: VirtualMachine\n"));
    let documents: Vec<&str> = std::iter::once(machine.as_str()).chain(others).collect();
    documents.join(DOCUMENT)
}

fn raw_volume() -> String {
    let changes = RAW_VOLUME.iter();
    changes.fold(TERRAFORM_LIBVIRT.to_owned(), |text, [from, to]| {
        text.replace(from, to)
    })
}

/// The line with the kernel's command line in a manifest of KubeVirt. A JSON text is a YAML text, so quotes and
/// backslashes of a command line survive.
fn kernel_args(value: &str) -> String {
    format!("kernelArgs: {value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(form: ImageForm, ending: &str, cmdline: &str) -> String {
        let mut examples = of_form(form, "7.8.9", cmdline).into_iter();
        let found = examples.find(|example| example.file.ends_with(ending));
        found.expect("the form has it").text
    }

    #[test]
    fn the_examples_of_the_documentation_have_what_an_image_replaces() {
        for example in [
            KUBEVIRT,
            KERNEL_BOOT,
            LIBVIRT,
            TERRAFORM_LIBVIRT,
            TERRAFORM_OPENSTACK,
        ] {
            assert!(example.contains(VERSION), "{example}");
        }
        assert!(KERNEL_BOOT.contains(&kernel_args(CMDLINE)));
        assert!(KERNEL_BOOT.contains(OTHER_DOCUMENTS[0]));
        assert!(KUBEVIRT.contains(OTHER_DOCUMENTS[1]));
        for [from, _] in RAW_VOLUME {
            assert!(TERRAFORM_LIBVIRT.contains(from), "{from}");
        }
    }

    #[test]
    fn an_example_names_the_files_and_the_version_of_its_image() {
        for form in ImageForm::ALL {
            for example in of_form(form, "7.8.9", "quiet") {
                let (file, text) = (&example.file, &example.text);
                let begin = format!("alknet_7.8.9-{form}");
                assert!(file.starts_with(&begin), "{file}");
                assert!(!text.contains(VERSION), "{file}: {text}");
                let named = match form {
                    ImageForm::Containerdisk | ImageForm::Kernelboot => begin + ".oci.tar",
                    form => format!("alknet_7.8.9.{form}"),
                };
                assert!(text.contains(&named), "{file}: {text}");
            }
        }
        let volume = text(ImageForm::Raw, "-libvirt.tf", "quiet");
        assert_eq!(volume.matches("qcow2").count(), 2, "{volume}");
        for ending in ["-libvirt.xml", "-openstack.tf"] {
            assert!(!text(ImageForm::Raw, ending, "quiet").contains("qcow2"));
        }
    }

    #[test]
    fn a_machine_without_firmware_has_the_other_documents_and_the_command_line() {
        let manifest = text(ImageForm::Kernelboot, ".yaml", r#"quiet VERSION x="a b""#);
        let kinds: Vec<_> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("kind: "))
            .collect();
        let expected = [
            "VirtualMachine",
            "Secret",
            "PersistentVolumeClaim",
            "Service",
        ];
        assert_eq!(kinds, expected, "{manifest}");
        assert!(!manifest.contains("kubevirt.yaml"), "{manifest}");
        let args = r#"kernelArgs: "quiet VERSION x=\"a b\"""#;
        assert!(manifest.contains(args), "{manifest}");
    }

    #[test]
    fn a_version_with_two_hyphens_is_in_no_comment_of_xml() {
        let mut examples = of_form(ImageForm::Qcow2, "1--2", "quiet").into_iter();
        let xml = examples.find(|example| example.file.ends_with(".xml"));
        let xml = xml.expect("the form has it").text;
        for comment in xml.split("<!--").skip(1) {
            let (inside, _) = comment.split_once("-->").expect("it ends");
            assert!(!inside.contains("--"), "{inside}");
        }
    }
}
