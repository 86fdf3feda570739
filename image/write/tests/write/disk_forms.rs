//! The disk in each form that has one, read by qemu-img and GNU tar.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_image::ImageForm;

use crate::support::{largest_blob, run, text};

/// The disk of a form, as a file with each block in its place. `None` if the form has no disk. What qemu-img and tar make
/// of `file` is in `folder`, the disk of a later form in the place of that of an earlier one.
pub(crate) fn as_raw(form: ImageForm, file: &Path, folder: &Path) -> Option<PathBuf> {
    match form {
        // The footer of a fixed VHD is behind the blocks.
        ImageForm::Raw | ImageForm::Vhd => Some(file.to_owned()),
        ImageForm::Qcow2 | ImageForm::Vmdk | ImageForm::Vhdx | ImageForm::Aws => {
            Some(converted(file, folder))
        }
        ImageForm::Ova => {
            unpack(file, folder, &[]);
            Some(converted(&folder.join("alknet_0.1.0.vmdk"), folder))
        }
        ImageForm::Gce => {
            unpack(file, folder, &["-S"]);
            Some(folder.join("disk.raw"))
        }
        ImageForm::Containerdisk => {
            let layout = folder.join("layout");
            fs::create_dir(&layout).expect("a new folder");
            unpack(file, &layout, &[]);
            // The file alone: its folder is read-only, and could not be removed after the test.
            let alone = ["--strip-components=1", "disk/alknet.qcow2"];
            unpack(&largest_blob(&layout), folder, &alone);
            Some(converted(&folder.join("alknet.qcow2"), folder))
        }
        _ => None,
    }
}

fn converted(file: &Path, folder: &Path) -> PathBuf {
    let raw = folder.join("converted.raw");
    run(
        "qemu-img",
        &["convert", "-O", "raw", text(file), text(&raw)],
    );
    raw
}

fn unpack(archive: &Path, folder: &Path, options: &[&str]) {
    let from = ["-x", "-f", text(archive), "-C", text(folder)];
    run("tar", &[&from[..], options].concat());
}
