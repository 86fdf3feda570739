//! The kernel's command line. An attacker who can edit it owns a machine whose image is not signed; a
//! machine that starts signed images only does not read it.

use super::parts::assemble;
use super::{SourceContents, unreadable};
use crate::{ConfigOrigin, SourceDiagnostic, SourcePaths, file};

/// Most bytes read of the command line; x86 takes 2048.
const COMMAND_LINE_BYTES_MAX: usize = 16 << 10;
/// The variable of the UEFI specification (3.3) that says whether signatures are enforced.
const SECURE_BOOT: &str = "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

const HINT: &str = "correct alknet.node in the boot loader's configuration (docs/provisioning.md)";

pub(super) fn find(
    paths: &SourcePaths,
    problems: &mut Vec<SourceDiagnostic>,
) -> Option<SourceContents> {
    let bytes = match file::read_bounded(&paths.command_line, COMMAND_LINE_BYTES_MAX) {
        Ok(bytes) => bytes?,
        Err(error) => {
            problems.push(unreadable(&ConfigOrigin::CommandLine, error, HINT));
            return None;
        }
    };
    // A line that is no text holds no document; the kernel's own words are not checked here.
    let line = std::str::from_utf8(&bytes).unwrap_or_default();
    let words = || line.split_ascii_whitespace();
    match assemble(words()) {
        Ok(None) => None,
        Ok(Some(document)) => match signed(paths, words()) {
            None => Some(SourceContents::document(
                ConfigOrigin::CommandLine,
                document,
            )),
            Some(why) => {
                problems.push(SourceDiagnostic::new(
                    "provisioning-ignored",
                    format!(
                        "{}: alknet.node is not read, since {why}",
                        ConfigOrigin::CommandLine
                    ),
                    "provision the node by another way (docs/provisioning.md)",
                ));
                None
            }
        },
        Err(error) => {
            problems.push(unreadable(&ConfigOrigin::CommandLine, error, HINT));
            None
        }
    }
}

/// Why the command line has no say, if it has none.
fn signed<'a>(
    paths: &SourcePaths,
    mut words: impl Iterator<Item = &'a str>,
) -> Option<&'static str> {
    // A locked kernel trusts what was signed, and the line is not.
    if words.any(|word| word == "lockdown=confidentiality") {
        return Some("the kernel is locked down");
    }
    if !paths.efi.exists() {
        return None;
    }
    // Four bytes of attributes, then the value.
    match file::read_bounded(&paths.efi.join(SECURE_BOOT), 16) {
        Ok(Some(variable)) if variable.get(4) == Some(&0) => None,
        Ok(Some(variable)) if variable.len() == 5 => Some("Secure Boot is on"),
        // Firmware without the variable has no Secure Boot, but variables that cannot be read at all
        // say nothing.
        Ok(None)
            if paths
                .efi
                .join("efivars")
                .read_dir()
                .is_ok_and(|mut it| it.next().is_some()) =>
        {
            None
        }
        // Where it is not known, the line is taken for the word of an attacker.
        _ => Some("it is unknown whether Secure Boot is on"),
    }
}
