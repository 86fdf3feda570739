//! An init that says one line and then does nothing, in the smallest initramfs there is: what a
//! kernel costs until the first program runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_tasks::failure::{Result, TaskError};

/// What the init says.
pub(super) const SAYS: &str = "bench: init";

const SOURCE: &str = r#"
static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}
static const char text[] = "bench: init\n";
void _start(void) {
    call(1 /* write */, 1, (long)text, sizeof text - 1);
    for (;;) call(34 /* pause */, 0, 0, 0);
}
"#;

/// `S_IFDIR | 0755`.
const FOLDER: u32 = 0o040_755;
/// `S_IFCHR | 0600`.
const DEVICE: u32 = 0o020_600;
/// `S_IFREG | 0755`.
const PROGRAM: u32 = 0o100_755;

/// Device number of `/dev/console`.
const CONSOLE: (u32, u32) = (5, 1);

/// Compiles the init and packs it, in `folder`.
pub(super) fn initramfs(folder: &Path) -> Result<PathBuf> {
    let source = folder.join("empty.c");
    let program = folder.join("empty");
    fs::write(&source, SOURCE).map_err(TaskError::io("write the empty init"))?;
    let output = Command::new("cc")
        // Without a C library there is no thread pointer, beside which the protector's guard lies.
        .args(["-O2", "-static", "-nostdlib", "-fno-stack-protector", "-o"])
        .args([&program, &source])
        .output()
        .map_err(TaskError::io("run cc (install gcc)"))?;
    if !output.status.success() {
        let how = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(TaskError::Step {
            what: "compiling the empty init".into(),
            how,
            log: None,
        });
    }
    let program = fs::read(&program).map_err(TaskError::io("read the empty init"))?;
    let path = folder.join("empty.cpio");
    fs::write(&path, pack(&program)).map_err(TaskError::io("write the empty initramfs"))?;
    Ok(path)
}

/// A `newc` archive (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
fn pack(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    // The kernel opens /dev/console for an init: without that it could say nothing.
    entry(&mut archive, "dev", FOLDER, (0, 0), &[]);
    entry(&mut archive, "dev/console", DEVICE, CONSOLE, &[]);
    entry(&mut archive, "init", PROGRAM, (0, 0), program);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let number = |value: usize| format!("{value:08x}");
    let small = |value: u32| format!("{value:08x}");
    // Any number, but each once: entries of one number may be taken for links to one file.
    let inode = archive.len();
    let fields = [
        number(inode),
        small(mode),
        small(0),
        small(0),
        small(1),
        small(0),
        number(content.len()),
        small(0),
        small(0),
        small(device.0),
        small(device.1),
        number(name.len() + 1),
        small(0),
    ];
    archive.extend_from_slice(b"070701");
    archive.extend(fields.concat().bytes());
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn cpio_reads_the_archive() {
        let mut cpio = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by the front door");
        let mut input = cpio.stdin.take().expect("piped");
        input.write_all(&pack(b"program")).expect("cpio reads");
        drop(input);
        let output = cpio.wait_with_output().expect("it ends");
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "dev\ndev/console\ninit\n"
        );
    }

    #[test]
    fn the_init_says_what_is_waited_for() {
        assert!(SOURCE.contains(&format!("{SAYS}\\n")));
    }
}
