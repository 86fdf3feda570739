//! The container images: the node in a container of runc, as Docker and LinuxKit make it, and machines as KubeVirt
//! starts them from its two kinds of image. skopeo and umoci read and unpack the images.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{DiskController, DiskFormat, MachineKind, Nic, NicModel, VirtioDisk, Vm};
use alknet_test_support::skipped_whole;
use alknet_tests::tools::{iso_volume, tool_says};
use alknet_tests::{BuiltImageFolder, TestBench, serve};
use serde_json::{Value, json};

use super::configuration::{NO_VAULT, document};
use super::forms::{built, serving, uefi};
use super::namespace::in_network_namespace;

/// The user of the image.
const USER: u32 = 65_532;
/// Ports below this number need a right of root in the namespace.
const FIRST_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// Size of a volume that outlives the machine.
const VOLUME_BYTES: u64 = 1 << 30;

#[test]
fn a_container_serves_as_a_user_without_rights_and_ends_in_order() {
    with_cgroups(|| {
        // As Docker sets it in the namespace of a container, and Kubernetes on request.
        fs::write(FIRST_PORT, "0").expect("root may");
        let bench = TestBench::new();
        let root = unpacked(&bench, ImageForm::Oci, &[]);
        let mut container = Container::run(&bench, &root, |_| {});
        let target = container.target.clone();
        let answer = bench.admin().call(&target, "node/info", &Value::Null, &[]);
        let info = answer.json();
        assert_eq!(info["role"], "host", "{info:#}");
        assert_eq!(info["listen"]["port"], 443, "{info:#}");
        let state = bench.path().join("volume/alknet");
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(state).expect("its state"));
        assert_eq!(owner, USER);
        container.kill("TERM");
        let status = container.runc.wait().expect("it is our child");
        assert_eq!(status.code(), Some(0), "{status}");
    });
}

/// LinuxKit makes the container of the label, which gives the right to serve port 443 to a user without other rights.
#[test]
fn a_service_of_linuxkit_serves_with_the_rights_of_its_label() {
    with_cgroups(|| {
        let bench = TestBench::new();
        let root = unpacked(&bench, ImageForm::Oci, &[]);
        let mut container = Container::run(&bench, &root, as_linuxkit);
        let target = container.target.clone();
        let answer = bench.admin().call(&target, "node/info", &Value::Null, &[]);
        let info = answer.json();
        assert_eq!(info["listen"]["port"], 443, "{info:#}");
        container.kill("TERM");
        let status = container.runc.wait().expect("it is our child");
        assert_eq!(status.code(), Some(0), "{status}");
    });
}

/// The configuration of a container as LinuxKit makes it of the image's label.
fn as_linuxkit(config: &mut Value) {
    // umoci writes the labels of an image there (OCI image specification, conversion to a runtime configuration).
    let label = config["annotations"]["org.mobyproject.config"].as_str();
    let label: Value = serde_json::from_str(label.expect("a label")).expect("JSON");
    let (rights, ambient) = (&label["capabilities"], &label["ambient"]);
    config["process"]["capabilities"] = json!({
        "bounding": rights, "effective": rights, "inheritable": rights, "permitted": rights,
        "ambient": ambient,
    });
    config["process"]["user"] = json!({ "uid": label["uid"], "gid": label["gid"] });
    config["process"]["noNewPrivileges"] = label["noNewPrivileges"].clone();
    assert_eq!(label["binds"][0], "/var/lib/alknet:/data", "{label:#}");
    assert_eq!(label["readonly"], true, "{label:#}");
}

/// KubeVirt starts QEMU with a layer of its own before the disk of the image, and throws that layer away. What is to
/// stay is on the volume, and the document on a volume that it makes of a secret.
#[test]
fn a_machine_of_kubevirt_starts_from_the_container_disk() {
    let bench = TestBench::new();
    let root = unpacked(&bench, ImageForm::Containerdisk, &["--rootless"]);
    let [disk, layer] = [root.join("disk/alknet.qcow2"), bench.path().join("layer")];
    let [from, to] = [&disk, &layer].map(|path| path.display().to_string());
    tool_says(
        "qemu-img",
        &["create", "-f", "qcow2", "-F", "qcow2", "-b", &from, &to],
    );
    let disk = VirtioDisk::file(layer).format(DiskFormat::Qcow2);
    let [volume, secret] = volumes(&bench);
    let machine = uefi(disk, NicModel::Virtio).disk(volume).disk(secret);
    let info = serving(&bench, machine).info();
    assert_eq!(info["name"], "in-a-pod", "{info:#}");
    assert_eq!(info["config"]["source"], "nocloud (vdc)", "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/vdb", "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

#[test]
fn a_machine_of_kubevirt_starts_from_kernel_and_initramfs() {
    let bench = TestBench::new();
    let root = unpacked(&bench, ImageForm::Kernelboot, &["--rootless"]);
    let built = BuiltImageFolder::get();
    let line = built.command_line(ImageForm::Kernelboot);
    let manifest = fs::read_to_string(built.example(ImageForm::Kernelboot, ".yaml"));
    let manifest = manifest.expect("built");
    assert!(
        manifest.contains(&format!("kernelArgs: {}\n", Value::from(line))),
        "the manifest beside the image has another command line than {line}"
    );
    let [volume, secret] = volumes(&bench);
    let machine = Vm::builder(MachineKind::Q35)
        .kernel(root.join("boot/bzImage"))
        .initrd(root.join("boot/initrd.cpio.lz4"))
        .append(line)
        // The kernel of each form is the same, and firmware would start each processor once more.
        .cpus(8)
        // A manifest may name this bus as well, on which a disk says its serial number in another way.
        .disk(volume.on(DiskController::VirtioScsi))
        .disk(secret)
        .nic(Nic::user());
    let info = serving(&bench, machine).info();
    assert_eq!(info["name"], "in-a-pod", "{info:#}");
    assert_eq!(info["processors"], 8, "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/sda", "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

/// The volume of the data, and that of the document.
fn volumes(bench: &TestBench) -> [VirtioDisk; 2] {
    let config = document(bench, "in-a-pod") + NO_VAULT;
    let secret = VirtioDisk::file(iso_volume(bench, "secret", &config));
    let volume = VirtioDisk::file(bench.disk("volume", VOLUME_BYTES));
    [volume.data(), secret.read_only()]
}

/// Runs a test in a network namespace where a file system of control groups is mounted, which runc needs. A root in
/// which another system is built has none.
fn with_cgroups(test: impl FnOnce() + Send + 'static) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("every Linux has it");
    if !mounts.contains(" - cgroup") {
        return skipped_whole("cgroups", "runc needs their file system");
    }
    in_network_namespace(test);
}

/// The root file system of an image, as umoci unpacks it.
fn unpacked(bench: &TestBench, form: ImageForm, options: &[&str]) -> PathBuf {
    let at = |name: &str| bench.path().join(name).display().to_string();
    let archive = built(form, OutputRole::OciImage);
    let from = format!("oci-archive:{}", archive.display());
    let to = format!("oci:{}:image", at("layout"));
    tool_says("skopeo", &["--insecure-policy", "copy", &from, &to]);
    let (image, bundle) = (format!("{}:image", at("layout")), at("bundle"));
    let unpack = [&["unpack"], options, &["--image", &image, &bundle]].concat();
    tool_says("umoci", &unpack);
    Path::new(&bundle).join("rootfs")
}

/// A container of runc. It is removed on drop.
struct Container {
    runc: Child,
    target: String,
    /// The folder in which runc keeps what it knows of containers.
    state: PathBuf,
}

impl Container {
    /// The name of each container, in a folder of its own.
    const NAME: &str = "alknet-test";

    /// Runs the image's command with an administrator, and waits until the node serves. `adapt` changes the
    /// configuration that umoci made of the image.
    fn run(bench: &TestBench, root: &Path, adapt: fn(&mut Value)) -> Self {
        let volume = bench.path().join("volume");
        fs::create_dir(&volume).expect("the folder is ours");
        chown(&volume, Some(USER), Some(USER)).expect("root may");
        let bundle = root.parent().expect("the root is in the bundle");
        let file = bundle.join("config.json");
        let config = fs::read(&file).expect("umoci wrote it");
        let mut config = serde_json::from_slice(&config).expect("JSON");
        Self::configure(&mut config, &volume, &bench.admin().identity());
        adapt(&mut config);
        fs::write(&file, config.to_string()).expect("the folder is ours");
        let state = bench.path().join("runc");
        let mut runc = runc(&state);
        runc.args(["run", "--bundle"]).arg(bundle).arg(Self::NAME);
        let (runc, said) = serve(runc);
        let target = said["target"].as_str().expect("a target").to_owned();
        Self {
            runc,
            target,
            state,
        }
    }

    /// What a person gives to `docker run`: an administrator, a volume, a root file system that cannot be written. The
    /// network is that of the test.
    fn configure(config: &mut Value, volume: &Path, admin: &str) {
        assert_eq!(config["process"]["user"]["uid"], USER, "{config:#}");
        let process = &mut config["process"];
        let arguments = process["args"].as_array_mut().expect("a command");
        assert_eq!(*arguments, [json!("/alknet"), json!("serve")]);
        arguments.extend(["--admin", admin, "--json"].map(Value::from));
        process["terminal"] = json!(false);
        config["root"]["readonly"] = json!(true);
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        let namespaces = namespaces.expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
        let mounts = config["mounts"].as_array_mut().expect("a list");
        let volume = volume.display().to_string();
        mounts.push(
            json!({ "destination": "/data", "type": "bind", "source": volume,
                            "options": ["rbind", "rw"] }),
        );
    }

    fn kill(&self, signal: &str) {
        let done = runc(&self.state)
            .args(["kill", Self::NAME, signal])
            .status();
        assert!(done.expect("the set-up installs runc").success());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended.
        let removed = runc(&self.state)
            .args(["delete", "--force", Self::NAME])
            .stderr(Stdio::null())
            .status();
        drop(removed);
        let _ = self.runc.kill();
        let _ = self.runc.wait();
    }
}

fn runc(state: &Path) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("runc");
    // It lies in a folder for administrators.
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.arg("--root").arg(state).stdin(Stdio::null());
    command
}
