//! The LinuxKit form against LinuxKit's rules for packages, and against LinuxKit itself if an
//! executable is on the search path or named by `ALKNET_LINUXKIT`.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, OutputRole};
use alknet_test_support::skip;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, InputFolder, LINUXKIT_VAR, output, run, text};

struct Packages {
    source: InputFolder,
    out: TempDir,
}

impl Packages {
    fn new() -> Self {
        let source = InputFolder::new();
        let out = tempfile::tempdir().expect("a temporary folder");
        source.build(&[ImageForm::Linuxkit], out.path());
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

#[test]
fn linuxkit_itself_imports_and_builds() {
    let Some(linuxkit) = find_linuxkit() else {
        skip!(
            "LinuxKit",
            "no linuxkit on the search path or in {LINUXKIT_VAR}"
        );
    };
    let packages = Packages::new();
    let dir = packages.source.dir.path();
    let cache = dir.join("cache");
    let linuxkit = |args: &[&str]| {
        run(
            text(&linuxkit),
            &[&["--cache", text(&cache)], args].concat(),
        )
    };
    for name in ["alknet-kernel.oci.tar", "alknet-appliance.oci.tar"] {
        linuxkit(&["cache", "import", text(&packages.out.path().join(name))]);
    }
    let yml = packages.out.path().join("linuxkit.yml");
    let build = [
        "build",
        "--no-sbom",
        "--format",
        "kernel+initrd",
        "--dir",
        text(dir),
        "--name",
        "k",
    ];
    linuxkit(&[&build, &[text(&yml)][..]].concat());
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

fn find_linuxkit() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(LINUXKIT_VAR) {
        let path = PathBuf::from(named);
        assert!(
            path.is_file(),
            "{LINUXKIT_VAR} names {path:?}, which is no file"
        );
        return Some(path);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("linuxkit"))
        .find(|path| path.is_file())
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
