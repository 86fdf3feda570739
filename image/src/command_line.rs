//! The kernel command line of each form.

use crate::form::ImageForm;

/// The erofs form's addition to the command line: the drive is the first virtio disk.
const EROFS_ROOT: &str = "root=/dev/vda rootfstype=erofs ro init=/init";

/// The additions of the forms that can be sealed to the command line. They stand before the
/// caller's options, which win.
///
/// `lockdown`: not even root reads the kernel's memory or changes it. `init_on_free`: the kernel
/// overwrites memory that a process or the kernel frees, so that a node that was ended leaves no
/// key behind. For that the kernel clears all of the memory once while it starts, which takes about
/// 170 million instructions for each GiB, so the forms for quick machines do without.
const SEALABLE: &str = "lockdown=confidentiality init_on_free=1";

/// Kernel messages also go to the screen of a machine that has one. It stands before the caller's consoles, the last of
/// which is `/dev/console`; PID 1 draws on the screen besides.
const SCREEN: &str = "console=tty0";

/// The kernel command line of `form`; `base` is the part that all forms share.
pub(crate) fn cmdline(form: ImageForm, base: &str) -> String {
    let words = match form {
        ImageForm::Erofs => ["", base, EROFS_ROOT],
        form if form.holds_efi_program() => [SEALABLE, SCREEN, base],
        _ => ["", base, ""],
    };
    words.join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CMDLINE_BYTES_MAX;

    #[test]
    fn only_erofs_names_a_root_and_the_longest_line_still_fits_the_kernel() {
        for form in ImageForm::ALL {
            let line = cmdline(form, &"a".repeat(CMDLINE_BYTES_MAX));
            assert_eq!(line.contains(" root=/dev/vda "), form == ImageForm::Erofs);
            assert!(line.len() < 2048, "{form}");
        }
        assert_eq!(cmdline(ImageForm::Erofs, ""), EROFS_ROOT);
        assert_eq!(cmdline(ImageForm::Direct, "quiet"), "quiet");
    }

    #[test]
    fn only_what_can_be_signed_is_locked_down() {
        for form in ImageForm::ALL {
            let line = cmdline(form, "quiet");
            let sealable = form.holds_efi_program();
            assert_eq!(line.contains("lockdown="), sealable, "{form}");
            assert_eq!(line.contains("init_on_free=1"), sealable, "{form}");
            assert!(line.contains("quiet"), "{form}");
        }
    }
}
