//! The LinuxKit form against LinuxKit's rules for packages, and against LinuxKit itself if an
//! executable is on the search path or named by `ALKNET_LINUXKIT`.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, OutputRole};
use alknet_test_support::skip;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{self, InputFolder, LINUXKIT_VAR, output, run, text};

/// A machine of LinuxKit with alknet as one of its services.
const EXAMPLE: &str = include_str!("../../../docs/examples/linuxkit-service.yml");
/// The container image, which is the package of the service.
const SERVICE: &str = "alknet_0.1.0.oci.tar";
/// Which rules are checked where LinuxKit is missing, and by which tests.
const PACKAGE_CHECKS: &str = "the names, digests and files of the packages are checked by \
                              the_packages_follow_the_rules_of_linuxkit";
const SERVICE_CHECKS: &str = "the label and the files of the service are checked by \
                              the_container_image_follows_the_rules_for_a_service, and the members of the example by \
                              the_example_for_linuxkit_has_the_members_of_its_files";

struct Packages {
    source: InputFolder,
    out: TempDir,
}

impl Packages {
    fn new() -> Self {
        let source = InputFolder::new();
        let out = tempfile::tempdir().expect("a temporary folder");
        source.build(&[ImageForm::Linuxkit, ImageForm::Oci], out.path());
        Self { source, out }
    }

    fn unpack(&self, name: &str) -> PathBuf {
        let dir = self.source.dir.path().join(format!("{name}.d"));
        fs::create_dir(&dir).expect("creatable");
        run(
            "tar",
            &["-xf", text(&self.out.path().join(name)), "-C", text(&dir)],
        );
        dir
    }
}

/// Follows a layout as LinuxKit's import and build do, and returns the tar file of its one layer.
fn follow(layout: &Path, reference: &str) -> PathBuf {
    let index = json(&layout.join("index.json"));
    let named = &index["manifests"][0];
    // LinuxKit takes only descriptors with this annotation, and ignores the others without a
    // message.
    assert_eq!(named["annotations"]["io.containerd.image.name"], reference);
    let images = json(&blob(layout, named));
    let image = &images["manifests"][0];
    assert_eq!(image["platform"]["architecture"], "amd64");
    assert_eq!(image["platform"]["os"], "linux");
    let manifest = json(&blob(layout, image));
    let config = json(&blob(layout, &manifest["config"]));
    let layers = manifest["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), 1);
    assert_eq!(config["rootfs"]["diff_ids"][0], layers[0]["digest"]);
    blob(layout, &layers[0])
}

/// The blob of a descriptor, after checking its size and digest with sha256sum.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().expect("a text");
    let hash = digest.strip_prefix("sha256:").expect("SHA-256");
    let path = layout.join("blobs/sha256").join(hash);
    assert_eq!(
        fs::metadata(&path).expect("present").len(),
        descriptor["size"]
    );
    assert!(run("sha256sum", &[text(&path)]).starts_with(hash));
    path
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

#[test]
fn the_packages_follow_the_rules_of_linuxkit() {
    let packages = Packages::new();
    let kernel = packages.unpack("alknet-kernel.oci.tar");
    let layer = follow(&kernel, "docker.io/alknet/kernel:6.12");
    assert_eq!(run("tar", &["-tf", text(&layer)]), "kernel\n");
    let extracted = output("tar", &["-xOf", text(&layer), "kernel"]).stdout;
    assert!(
        extracted == support::kernel(),
        "the kernel in the package differs"
    );
    let appliance = packages.unpack("alknet-appliance.oci.tar");
    let layer = follow(&appliance, "docker.io/alknet/appliance:0.1.0");
    let listing = run("tar", &["-tvf", text(&layer)]);
    assert!(listing.starts_with("-rwxr-xr-x 0/0"), "{listing}");
    assert!(listing.ends_with("1970-01-01 00:00 init\n"), "{listing}");
}

/// LinuxKit takes the container image like a package, and reads in its label how the service runs.
#[test]
fn the_container_image_follows_the_rules_for_a_service() {
    let packages = Packages::new();
    let layout = packages.unpack(SERVICE);
    let layer = follow(&layout, "docker.io/alknet/alknet:0.1.0");
    let listing = run("tar", &["-tf", text(&layer)]);
    assert_eq!(listing, "data/\ntmp/\nalknet\n");
    let from = format!("oci-archive:{}", text(&packages.out.path().join(SERVICE)));
    let told = run("skopeo", &["inspect", "--config", &from]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let label = told["config"]["Labels"]["org.mobyproject.config"].as_str();
    let label: Value = serde_json::from_str(label.expect("a label")).expect("JSON");
    // LinuxKit refuses a label with a member that it does not know.
    let expected = json!({
        "uid": 65_532,
        "gid": 65_532,
        "capabilities": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
        "noNewPrivileges": true,
        "readonly": true,
        "net": "host",
        "binds": ["/var/lib/alknet:/data", "/etc/resolv.conf:/etc/resolv.conf"],
        "runtime": { "mkdir": ["/var/lib/alknet"] },
    });
    assert_eq!(label, expected);
    let image = format!("image: alknet/alknet:{}\n", env!("CARGO_PKG_VERSION"));
    let owner = r#"["chown", "65532:65532", "/var/lib/alknet"]"#;
    let command = r#"["/alknet", "serve", "#;
    for part in [&image, owner, command] {
        assert!(EXAMPLE.contains(part), "the example has no {part}");
    }
}

#[test]
fn linuxkit_builds_the_service_of_the_example() {
    let Some(linuxkit) = LinuxKit::find() else {
        skip!(
            "LinuxKit",
            "no linuxkit on the search path or in {LINUXKIT_VAR}: {SERVICE_CHECKS}"
        );
    };
    let packages = Packages::new();
    linuxkit.import(&packages, &["alknet-kernel.oci.tar", SERVICE]);
    // The other packages of the example come from a registry.
    let ours = fs::read_to_string(packages.out.path().join("linuxkit.yml")).expect("written");
    let (kernel, _) = ours.split_once("init:\n").expect("our init package");
    let (_, services) = EXAMPLE.split_once("services:\n").expect("a service");
    let yml = packages.out.path().join("service.yml");
    fs::write(&yml, format!("{kernel}services:\n{services}")).expect("writable");
    let initrd = linuxkit.build(&packages, &yml).join("k-initrd.img");
    let root = packages.source.dir.path().join("root");
    fs::create_dir(&root).expect("creatable");
    let unpack = format!(
        "cd '{}' && gzip -dc '{}' | cpio -id --quiet 'containers/*'",
        text(&root),
        text(&initrd)
    );
    run("sh", &["-c", &unpack]);
    let service = root.join("containers/services/alknet");
    let config = json(&service.join("config.json"));
    let process = &config["process"];
    assert_eq!(process["user"]["uid"], 65_532, "{config:#}");
    assert_eq!(process["args"][1], "serve", "{config:#}");
    let rights = json!(["CAP_NET_BIND_SERVICE"]);
    assert_eq!(process["capabilities"]["ambient"], rights, "{config:#}");
    assert_eq!(config["root"]["readonly"], true, "{config:#}");
    let program = find_file(&service, "alknet");
    // It is this test program. Listing its tests shows that the kernel loads it.
    assert!(run(text(&program), &["--list"]).contains("linuxkit_builds"));
}

/// The file of this name below a folder: LinuxKit decides in which folder the root of a service lies.
fn find_file(folder: &Path, name: &str) -> PathBuf {
    let found = run("find", &[text(folder), "-type", "f", "-name", name]);
    PathBuf::from(found.trim_end())
}

#[test]
fn linuxkit_itself_imports_and_builds() {
    let Some(linuxkit) = LinuxKit::find() else {
        skip!(
            "LinuxKit",
            "no linuxkit on the search path or in {LINUXKIT_VAR}: {PACKAGE_CHECKS}"
        );
    };
    let packages = Packages::new();
    linuxkit.import(
        &packages,
        &["alknet-kernel.oci.tar", "alknet-appliance.oci.tar"],
    );
    let yml = packages.out.path().join("linuxkit.yml");
    let dir = linuxkit.build(&packages, &yml);
    let kernel = fs::read(dir.join("k-kernel")).expect("a kernel");
    assert!(
        kernel == support::kernel(),
        "the kernel that came out is not the one that went in"
    );
    let cmdline = fs::read_to_string(dir.join("k-cmdline")).expect("a command line");
    assert_eq!(cmdline.trim(), packages.source.inputs.cmdline);
    let initrd = text(&dir.join("k-initrd.img")).to_owned();
    let listing = run(
        "sh",
        &["-c", &format!("gzip -dc '{initrd}' | cpio -itv --quiet")],
    );
    let init = listing
        .lines()
        .find(|line| line.ends_with(" init") || line.ends_with(" ./init"));
    assert!(
        init.is_some_and(|line| line.starts_with("-rwxr-xr-x")),
        "{listing}"
    );
}

/// LinuxKit's executable.
struct LinuxKit(PathBuf);

impl LinuxKit {
    fn find() -> Option<Self> {
        if let Some(named) = std::env::var_os(LINUXKIT_VAR) {
            let path = PathBuf::from(named);
            assert!(
                path.is_file(),
                "{LINUXKIT_VAR} names {path:?}, which is no file"
            );
            return Some(Self(path));
        }
        let path = std::env::var_os("PATH")?;
        let mut programs = std::env::split_paths(&path).map(|dir| dir.join("linuxkit"));
        programs.find(|path| path.is_file()).map(Self)
    }

    fn run(&self, packages: &Packages, args: &[&str]) {
        let cache = packages.source.dir.path().join("cache");
        run(text(&self.0), &[&["--cache", text(&cache)], args].concat());
    }

    fn import(&self, packages: &Packages, names: &[&str]) {
        for name in names {
            let file = packages.out.path().join(name);
            self.run(packages, &["cache", "import", text(&file)]);
        }
    }

    /// Builds `k-kernel`, `k-cmdline` and `k-initrd.img`, and returns their folder.
    fn build<'a>(&self, packages: &'a Packages, yml: &Path) -> &'a Path {
        let dir = packages.source.dir.path();
        let format = ["build", "--no-sbom", "--format", "kernel+initrd"];
        let place = ["--dir", text(dir), "--name", "k", text(yml)];
        self.run(packages, &[&format[..], &place].concat());
        dir
    }
}

#[test]
fn the_role_names_in_the_manifest_lead_to_the_packages() {
    let packages = Packages::new();
    let manifest = alknet_image::Manifest::read(packages.out.path()).expect("readable");
    for role in [
        OutputRole::OciKernel,
        OutputRole::OciAppliance,
        OutputRole::LinuxkitYml,
    ] {
        let path = manifest.path(packages.out.path(), ImageForm::Linuxkit, role);
        assert!(path.is_some_and(|path| path.is_file()), "{role:?}");
    }
    assert_eq!(
        manifest.path(packages.out.path(), ImageForm::Uki, OutputRole::Uki),
        None
    );
}
