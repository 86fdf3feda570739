//! A minimal Debian as an administrator makes one: mmdebstrap, the cloud kernel, systemd, and nginx as it is installed.
//!
//! What the benchmark adds makes Debian's figures smaller: a network without anything to wait for, an identity of the
//! machine, so that no boot is a first one, a disk hardly larger than its content, and no boot loader on it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use alknet_qemu::{Accel, MachineKind, Nic, VirtioDisk, Vm, VmBuilder};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::sources;

use crate::work_cost::WorkCost;

/// The release. A newer one has larger packages.
const SUITE: &str = "bookworm";
/// What it has beside the essential packages.
const PACKAGES: &str = "linux-image-cloud-amd64,nginx,systemd-sysv,udev";

/// The line that the machine prints once nginx listens.
const SERVES: &str = "bench: serves";
/// The port of nginx.
const HTTP: u16 = 80;
/// From power-on to the line, on a processor that runs guests itself.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
/// From the line to the answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// How long a request may take before the next one is sent.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(20);

/// What its kernel has to be given.
const CMDLINE: &str = "console=ttyS0 quiet panic=10 root=/dev/vda rootfstype=ext4 rw";

/// Runs with the folder of the system before mmdebstrap packs it.
const CUSTOMIZE: &str = r#"#!/bin/sh
set -eu
root=$1
printf '[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n' >"$root/etc/systemd/network/lan.network"
cat >"$root/etc/systemd/system/bench-serves.service" <<'UNIT'
[Unit]
After=nginx.service
Requires=nginx.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo bench: serves >/dev/console'
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl enable systemd-networkd.service bench-serves.service
"#;

/// Makes the disk of the packed system, in the current folder. mke2fs has to see the owners of the files, so a user who
/// is not root runs this in a namespace.
const DISK: &str = r#"set -eu
PATH=$PATH:/usr/sbin:/sbin
mkdir root
tar -C root --exclude='./dev/*' -xpf root.tar
echo 0123456789abcdef0123456789abcdef >root/etc/machine-id
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd
chmod 644 vmlinuz initrd
mib=$(du -s --block-size=1M root | cut -f 1)
truncate -s "$((mib * 5 / 4 + 64))M" disk.raw
mke2fs -q -F -t ext4 -d root disk.raw
rm -rf root
"#;

/// Runs the script above where it has to run.
const AS_ROOT: &str = r#"if [ "$(id -u)" = 0 ]; then exec sh disk.sh
else exec mmdebstrap --unshare-helper sh disk.sh; fi"#;

/// The system on a disk, with the kernel that starts it.
#[derive(Debug)]
pub(super) struct DebianImage {
    pub(super) disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl DebianImage {
    /// Makes it in an empty folder.
    pub(super) fn make(cx: &XtaskContext, folder: &Path) -> Result<Self> {
        let customize = folder.join("customize.sh");
        let prepare = || {
            fs::write(&customize, CUSTOMIZE)?;
            fs::set_permissions(&customize, Permissions::from_mode(0o755))?;
            fs::write(folder.join("disk.sh"), DISK)
        };
        prepare().map_err(TaskError::io("write the scripts for Debian"))?;
        let mut bootstrap = Command::new("mmdebstrap");
        bootstrap
            .arg("--variant=minbase")
            .arg(format!("--include={PACKAGES}"))
            .arg(format!("--customize-hook={}", customize.display()))
            // A system that nothing uses yet need not survive a power cut of this host.
            .arg("--dpkgopt=force-unsafe-io")
            .args([SUITE, "root.tar", &sources::debian_archive()?])
            .current_dir(folder);
        cx.run(&mut bootstrap, "Debian from its packages", "mmdebstrap")?;
        let mut disk = Command::new("sh");
        disk.args(["-c", AS_ROOT]).current_dir(folder);
        cx.run(&mut disk, "a disk with Debian", "debian-disk")?;
        let at = |name: &str| folder.join(name);
        Ok(Self {
            disk: at("disk.raw"),
            kernel: at("vmlinuz"),
            initrd: at("initrd"),
        })
    }

    fn machine(&self) -> VmBuilder {
        Vm::builder(MachineKind::Q35)
            .kernel(&self.kernel)
            .initrd(&self.initrd)
            .append(CMDLINE)
            .disk(VirtioDisk::snapshot(&self.disk))
            .nic(Nic::user().forward(HTTP))
            .accel(Accel::Tcg)
    }

    /// Boots it until nginx has answered.
    pub(super) fn boot(&self) -> Result<WorkCost> {
        let started = Instant::now();
        let mut vm = self.machine().start()?;
        vm.wait_for(SERVES, SERVES_WITHIN)?;
        let address = vm.forward_of(HTTP);
        let address =
            address.ok_or_else(|| TaskError::Arguments("the machine has no card".into()))?;
        let until = Instant::now() + vm.scale(ANSWERS_WITHIN);
        while !answers(address) {
            if Instant::now() > until {
                return Err(TaskError::Step {
                    what: "asking nginx".into(),
                    how: vm.report(),
                    log: None,
                });
            }
            thread::sleep(PAUSE);
        }
        let cost = WorkCost {
            cpu_s: vm.cpu_time().unwrap_or_default().as_secs_f64(),
            wall_s: started.elapsed().as_secs_f64(),
        };
        vm.cut_power()?;
        Ok(cost)
    }
}

/// Whether a server there answers a request with its page.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, ATTEMPT)?;
        stream.set_read_timeout(Some(ATTEMPT))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    // QEMU accepts a connection before the guest does, and closes it if the guest does not.
    ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.") && answer.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_machine_prints_what_is_waited_for() {
        assert!(CUSTOMIZE.contains(&format!("echo {SERVES} >")));
    }

    #[test]
    fn only_a_page_is_an_answer() {
        for (said, is_answer) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n", false),
            ("", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("bound");
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 18];
                stream.read_exact(&mut request).expect("a request");
                stream.write_all(said.as_bytes()).expect("it reads");
            });
            assert_eq!(answers(address), is_answer, "{said:?}");
            server.join().expect("it served");
        }
    }
}
