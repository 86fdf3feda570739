//! Makes the ext4 template that the first boot writes to a blank data partition, and records the
//! build time. No clock may be set to a time before it.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Size of the template's file system. PID 1 grows it to its partition after mounting.
const TEMPLATE_BYTES: u64 = 128 << 20;
/// Block size of the template, bytes.
const BLOCK_BYTES: usize = 4096;
/// 2026-11-20T00:00:00Z: the earliest plausible time if the build sets no time.
const BUILD_TIME_FALLBACK: u64 = 1_795_132_800;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ALKNET_BUILD_TIME");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rustc-env=ALKNET_BUILD_TIME_S={}", build_time());

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let image = out.join("template.ext4");
    format(&image);
    pack(&image, &out.join("template.bin"));
    fs::remove_file(&image).expect("the template file was just written");
}

fn build_time() -> u64 {
    ["ALKNET_BUILD_TIME", "SOURCE_DATE_EPOCH"]
        .iter()
        .find_map(|name| env::var(name).ok()?.trim().parse().ok())
        .unwrap_or(BUILD_TIME_FALLBACK)
}

/// Identifiers and times are fixed, so that two builds give the same bytes. The first boot gives
/// each machine its own identifier.
fn format(image: &Path) {
    let file = fs::File::create(image).expect("OUT_DIR is writable");
    file.set_len(TEMPLATE_BYTES)
        .expect("a sparse file costs nothing");
    drop(file);
    // Distributions have `mke2fs` in sbin, which is not in a user's PATH. The host's mke2fs.conf
    // must not choose features.
    let output = Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("E2FSPROGS_FAKE_TIME", "1577836800")
        .env("MKE2FS_CONFIG", "/dev/null")
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
        ])
        // The features are listed and none comes by default: a newer `mke2fs` would add some that
        // the kernel of the image lacks.
        .args([
            "-O",
            "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
             large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,meta_bg",
        ])
        .args([
            "-E",
            "lazy_itable_init=1,nodiscard,hash_seed=a5b5d94b-6cb1-4e0e-9b1c-5d3c8d1f0a01,\
             root_owner=0:0",
        ])
        .args([
            "-U",
            "a5b5d94b-6cb1-4e0e-9b1c-5d3c8d1f0a02",
            "-L",
            "alk-data",
            "-J",
            "size=16",
        ])
        .arg(image)
        .output()
        .unwrap_or_else(|error| {
            panic!("mke2fs cannot be started ({error}); install the package e2fsprogs")
        });
    assert!(
        output.status.success(),
        "mke2fs failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Writes every block that is not zero, as `u32` block number (little endian) and its bytes.
fn pack(image: &Path, packed: &Path) {
    let bytes = fs::read(image).expect("the template file was just written");
    let mut out = fs::File::create(packed).expect("OUT_DIR is writable");
    for (number, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            let number = u32::try_from(number).expect("128 MiB has 32,768 blocks");
            out.write_all(&number.to_le_bytes())
                .expect("OUT_DIR is writable");
            out.write_all(block).expect("OUT_DIR is writable");
        }
    }
}
