//! LinuxKit's inputs: a kernel package, the appliance as init package, and the file that names
//! both.

use serde_json::json;

use crate::oci::{OciPackage, layout};

/// The file in a kernel package, which `linuxkit.yml` names as `binary`.
const KERNEL_FILE: &str = "kernel";

/// OCI layout of the kernel package for a kernel `series` such as `6.12`.
pub(crate) fn kernel_package(series: &str, kernel: &[u8]) -> Vec<u8> {
    layout(&OciPackage {
        reference: &format!("docker.io/alknet/kernel:{series}"),
        folders: &[],
        files: &[(KERNEL_FILE, 0o644, kernel)],
        owner: 0,
        config: json!({}),
    })
}

/// OCI layout of the appliance package: the one binary as `/init`.
pub(crate) fn appliance_package(version: &str, binary: &[u8]) -> Vec<u8> {
    layout(&OciPackage {
        reference: &format!("docker.io/alknet/appliance:{version}"),
        folders: &[],
        files: &[("init", 0o755, binary)],
        owner: 0,
        config: json!({"Entrypoint": ["/init"]}),
    })
}

/// The file that `linuxkit build` reads, for a kernel series, a version and a kernel command line.
///
/// `image/linuxkit.yml` is this file for the version in the tree.
#[must_use]
pub fn yml(series: &str, version: &str, cmdline: &str) -> String {
    // A JSON text is a YAML text, so quotes and backslashes of a command line survive.
    let cmdline = serde_json::Value::from(cmdline);
    format!(
        "# Import both packages once, then build:\n\
         #   linuxkit cache import alknet-kernel.oci.tar\n\
         #   linuxkit cache import alknet-appliance.oci.tar\n\
         #   linuxkit build --no-sbom --format kernel+initrd linuxkit.yml\n\
         kernel:\n  \
           image: alknet/kernel:{series}\n  \
           cmdline: {cmdline}\n  \
           binary: {KERNEL_FILE}\n  \
           tar: none\n\
         init:\n  \
           - alknet/appliance:{version}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_file_is_the_one_for_this_version() {
        let expected = yml(
            "6.12",
            env!("CARGO_PKG_VERSION"),
            "console=ttyS0 quiet panic=10 noreplace-smp no_timer_check",
        );
        assert_eq!(include_str!("../linuxkit.yml"), expected);
    }

    #[test]
    fn quotes_in_a_command_line_stay_inside_the_text() {
        assert!(yml("6.12", "1", r#"x="a b""#).contains(r#"cmdline: "x=\"a b\"""#));
    }
}
