//! The scripts with which iPXE and PXELINUX start kernel and initramfs from a server.

/// Names of the files on the server, in the folder of the script.
const KERNEL: &str = "bzImage";
const INITRD: &str = "initrd.cpio.lz4";

/// The script for iPXE.
pub(crate) fn ipxe(cmdline: &str) -> String {
    // Under UEFI the kernel finds the initramfs by its name on the command line.
    format!(
        "#!ipxe\n\
         kernel {KERNEL} initrd={INITRD} {cmdline}\n\
         initrd {INITRD}\n\
         boot\n"
    )
}

/// The configuration for PXELINUX.
pub(crate) fn pxelinux(cmdline: &str) -> String {
    format!(
        "DEFAULT alknet\n\
         LABEL alknet\n  \
           KERNEL {KERNEL}\n  \
           INITRD {INITRD}\n  \
           APPEND {cmdline}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_scripts_have_the_whole_command_line() {
        let cmdline = "console=ttyS0 alknet.node=\"a b\"";
        assert!(ipxe(cmdline).contains(&format!("initrd=initrd.cpio.lz4 {cmdline}\n")));
        assert!(pxelinux(cmdline).contains(&format!("APPEND {cmdline}\n")));
    }
}
