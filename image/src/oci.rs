//! Single-layer OCI image layouts as tar files (OCI image specification 1.1), in a form that both
//! `linuxkit cache import` and the tools of container registries accept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::manifest::hex_sha256;
use crate::tar::Tar;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const EPOCH: &str = "1970-01-01T00:00:00Z";
const ARCHITECTURE: &str = "amd64";

/// One image to lay out.
#[derive(Debug)]
pub(crate) struct OciPackage<'a> {
    /// Full reference with registry and tag. LinuxKit accepts no shorter one.
    pub(crate) reference: &'a str,
    /// Folders of the layer: name with a slash behind it, permissions.
    pub(crate) folders: &'a [(&'a str, u32)],
    /// Files of the layer: name, permissions, contents.
    pub(crate) files: &'a [(&'a str, u32, &'a [u8])],
    /// User and group of folders and files.
    pub(crate) owner: u32,
    /// How a container runs (OCI image specification 1.1, the member `config`).
    pub(crate) config: Value,
}

/// The layout: root index → image index (one per architecture) → manifest → configuration, layer.
pub(crate) fn layout(package: &OciPackage<'_>) -> Vec<u8> {
    let mut blobs = Blobs::default();
    let layer = blobs.add(LAYER, layer(package));
    let config = json!({
        "created": EPOCH,
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": package.config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "history": [{"created": EPOCH}],
    });
    let config = blobs.add_json(CONFIG, &config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blobs.add_json(MANIFEST, &manifest);
    // An index names the platform of each manifest.
    manifest["platform"] = json!({"architecture": ARCHITECTURE, "os": "linux"});
    let mut image = blobs.add_json(INDEX, &index(&manifest));
    image["annotations"] = json!({
        "io.containerd.image.name": package.reference,
        "org.opencontainers.image.ref.name": package.reference,
    });
    blobs.pack(&index(&image))
}

fn layer(package: &OciPackage<'_>) -> Vec<u8> {
    let mut tar = Tar::owned_by(package.owner);
    for (name, mode) in package.folders {
        tar.folder(name, *mode);
    }
    for (name, mode, contents) in package.files {
        tar.file(name, *mode, contents);
    }
    tar.finish()
}

fn index(descriptor: &Value) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]})
}

#[derive(Default)]
struct Blobs {
    by_hash: BTreeMap<String, Vec<u8>>,
}

impl Blobs {
    /// Stores the bytes and returns their descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let hash = hex_sha256(&bytes);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": format!("sha256:{hash}"),
            "size": bytes.len(),
        });
        self.by_hash.insert(hash, bytes);
        descriptor
    }

    fn add_json(&mut self, media_type: &str, document: &Value) -> Value {
        self.add(media_type, document.to_string().into_bytes())
    }

    fn pack(self, index: &Value) -> Vec<u8> {
        let mut tar = Tar::default();
        tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        // Sorted by hash, because two builds must give the same bytes.
        for (hash, bytes) in &self.by_hash {
            tar.file(&format!("blobs/sha256/{hash}"), 0o644, bytes);
        }
        tar.file("index.json", 0o644, index.to_string().as_bytes());
        tar.finish()
    }
}
