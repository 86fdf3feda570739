//! A machine of the form `linuxkit`, made as LinuxKit makes it: its program is in no package registry, and
//! `image/tests/image/linuxkit.rs` runs it where it is at hand.

use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{MachineKind, Nic, Vm, VmBuilder};
use alknet_tests::tools::tool_says;
use alknet_tests::{BuiltImageFolder, TestBench};

use super::forms::built;

/// What LinuxKit's format `kernel+initrd` has for the form's `linuxkit.yml`: the kernel of the one package, and the files
/// of the other one in an archive that is compressed with gzip. Nothing else is in that archive, such as `/dev/console`.
pub(super) fn machine(bench: &TestBench) -> VmBuilder {
    let kernel = unpacked(bench, OutputRole::OciKernel).join("kernel");
    let root = unpacked(bench, OutputRole::OciAppliance);
    let initrd = bench.path().join("initrd.img");
    let pack = format!(
        "cd '{}' && find . | cpio --quiet -o -H newc | gzip -1 >'{}'",
        root.display(),
        initrd.display()
    );
    tool_says("sh", &["-c", &pack]);
    Vm::builder(MachineKind::Q35)
        .kernel(kernel)
        .initrd(initrd)
        .append(BuiltImageFolder::get().command_line(ImageForm::Linuxkit))
        .nic(Nic::user())
}

/// The files of a package, as umoci unpacks them.
fn unpacked(bench: &TestBench, role: OutputRole) -> PathBuf {
    let package = built(ImageForm::Linuxkit, role);
    let folder = bench.path().join(format!("{role:?}"));
    std::fs::create_dir(&folder).expect("a new folder");
    let at = |name: &str| folder.join(name).display().to_string();
    let from = format!("oci-archive:{}", package.display());
    let to = format!("oci:{}:package", at("layout"));
    tool_says("skopeo", &["--insecure-policy", "copy", &from, &to]);
    let image = format!("{}:package", at("layout"));
    let bundle = at("bundle");
    tool_says(
        "umoci",
        &["unpack", "--rootless", "--image", &image, &bundle],
    );
    Path::new(&bundle).join("rootfs")
}
