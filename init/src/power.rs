//! The power button: an input device where the kernel offers it (`KEY_POWER` on `/dev/input`), and
//! the kernel's ACPI event channel (generic netlink family `acpi_event`) everywhere else.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use tokio::{io::unix::AsyncFd, sync::mpsc};

use crate::machine::MachineEvent;

/// Type of key events, `linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
/// The key that every power button has.
const KEY_POWER: u16 = 116;
/// Bytes of `struct input_event` on a 64-bit machine: two times, type, code, value.
const INPUT_EVENT_BYTES: usize = 24;

/// The generic netlink family of ACPI events and its multicast group.
const ACPI_FAMILY: &str = "acpi_event";
const ACPI_GROUP: &str = "acpi_mc_group";
/// The class of the button in an ACPI event.
const ACPI_POWER: &[u8] = b"button/power";
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY` and its attributes, `linux/genetlink.h`.
const CTRL_ID: u16 = 16;
const CTRL_GETFAMILY: u8 = 3;
const CTRL_FAMILY_NAME: u16 = 2;
const CTRL_MCAST_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// Bytes of a netlink header and of a generic netlink header.
const HEADERS_BYTES: usize = 16 + 4;
/// The largest message that PID 1 reads, bytes: the kernel's are a few hundred.
const MESSAGE_BYTES_MAX: usize = 8192;

/// Reports presses as [`MachineEvent::PowerButton`] for as long as the machine runs.
pub(crate) fn watch(events: &mpsc::Sender<MachineEvent>) {
    for path in buttons(Path::new("/sys")) {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        match opened {
            Ok(file) => {
                tokio::spawn(follow(file, has_press, events.clone()));
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a power button is not heard");
            }
        }
    }
    // Without ACPI, as on most arm64 boards, there is no such family.
    if let Ok(socket) = acpi_socket() {
        tokio::spawn(follow(socket, has_acpi_press, events.clone()));
    }
}

/// Reads until the device disappears.
async fn follow(file: File, pressed: fn(&[u8]) -> bool, events: mpsc::Sender<MachineEvent>) {
    // SAFETY: a file has one descriptor, which is open for as long as the file lives, and `AsyncFd`
    // owns the file.
    let Ok(file) = (unsafe { AsyncFd::register(file) }) else {
        return;
    };
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let Ok(mut ready) = file.readable().await else {
            return;
        };
        let read = match ready.try_io(|file| file.get_ref().read(&mut bytes)) {
            Ok(Ok(read @ 1..)) => read,
            // The socket's buffer overflowed. The lost events are unknown, and the following ones
            // are not.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
            Ok(_) => return,
            Err(_) => continue,
        };
        if pressed(&bytes[..read]) && events.send(MachineEvent::PowerButton).await.is_err() {
            return;
        }
    }
}

/// Device files of the input devices that have a power key.
fn buttons(sys: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(sys.join("class/input")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let keys = fs::read_to_string(path.join("device/capabilities/key"));
            keys.is_ok_and(|keys| has_key(&keys, KEY_POWER))
        })
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            name.starts_with("event")
                .then(|| Path::new("/dev/input").join(name))
        })
        .collect()
}

/// Whether the bitmap has the key. It is in 64-bit words, most significant first.
fn has_key(bitmap: &str, key: u16) -> bool {
    let word = bitmap.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> (key % 64) & 1 == 1)
}

fn has_press(bytes: &[u8]) -> bool {
    bytes.chunks_exact(INPUT_EVENT_BYTES).any(|event| {
        let value = u32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
        // Value 1 is the press, 0 the release and 2 a repeat (Documentation/input/event-codes.rst,
        // EV_KEY).
        u16_at(event, 16) == EV_KEY && u16_at(event, 18) == KEY_POWER && value == 1
    })
}

fn has_acpi_press(bytes: &[u8]) -> bool {
    let payload = bytes.get(HEADERS_BYTES..).unwrap_or(&[]);
    attributes(payload).any(|(_, event)| event.starts_with(ACPI_POWER))
}

/// A socket that receives ACPI events.
fn acpi_socket() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only, and the descriptor that it returns has no other owner.
    let socket = unsafe {
        let fd = Errno::result(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_GENERIC))?;
        File::from(OwnedFd::from_raw_fd(fd))
    };
    let group = acpi_group(&socket)?;
    // SAFETY: the option's value is the number behind the pointer, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    Errno::result(outcome)?;
    Ok(socket)
}

/// Asks the kernel for the number of the group. The kernel answers before the call returns.
fn acpi_group(socket: &File) -> io::Result<u32> {
    let mut reader = socket;
    io::Write::write_all(&mut reader, &family_request())?;
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let read = reader.read(&mut bytes)?;
    group_in(&bytes[..read]).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn family_request() -> Vec<u8> {
    let mut name = ACPI_FAMILY.as_bytes().to_vec();
    // Generic netlink takes names as NUL-terminated strings.
    name.push(0);
    let attribute = 4 + name.len();
    let total = HEADERS_BYTES + attribute.next_multiple_of(4);
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&(total as u32).to_ne_bytes());
    out.extend_from_slice(&CTRL_ID.to_ne_bytes());
    out.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[CTRL_GETFAMILY, 1, 0, 0]);
    out.extend_from_slice(&(attribute as u16).to_ne_bytes());
    out.extend_from_slice(&CTRL_FAMILY_NAME.to_ne_bytes());
    out.extend_from_slice(&name);
    out.resize(total, 0);
    out
}

fn group_in(bytes: &[u8]) -> Option<u32> {
    let family = attributes(bytes.get(HEADERS_BYTES..)?);
    let groups = family
        .into_iter()
        .find(|(kind, _)| *kind == CTRL_MCAST_GROUPS)?
        .1;
    attributes(groups).find_map(|(_, group)| {
        let name = attributes(group).find(|(kind, _)| *kind == GROUP_NAME)?.1;
        let id = attributes(group).find(|(kind, _)| *kind == GROUP_ID)?.1;
        let wanted = name.strip_suffix(b"\0") == Some(ACPI_GROUP.as_bytes());
        wanted.then(|| id.try_into().ok().map(u32::from_ne_bytes))?
    })
}

/// Netlink attributes: kind and value, each starting on a multiple of four. A malformed attribute
/// ends the list.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest.get(..4)?, 0));
        // The upper two bits are flags (NLA_TYPE_MASK).
        let kind = u16_at(rest, 2) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input_event(kind: u16, code: u16, value: u32) -> Vec<u8> {
        let mut out = vec![0; 16];
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(&code.to_ne_bytes());
        out.extend_from_slice(&value.to_ne_bytes());
        out
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        [&[0; HEADERS_BYTES], payload].concat()
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        assert!(has_press(&input_event(EV_KEY, KEY_POWER, 1)));
        assert!(!has_press(&input_event(EV_KEY, KEY_POWER, 0)), "released");
        assert!(!has_press(&input_event(EV_KEY, 30, 1)), "another key");
        assert!(!has_press(&input_event(0, KEY_POWER, 1)), "another kind");
        assert!(
            !has_press(&input_event(EV_KEY, KEY_POWER, 1)[..20]),
            "cut short"
        );
        let several = [input_event(0, 0, 0), input_event(EV_KEY, KEY_POWER, 1)].concat();
        assert!(has_press(&several));
    }

    #[test]
    fn the_key_bitmap_is_read_from_its_end() {
        assert!(has_key("10000000000000 0\n", KEY_POWER));
        assert!(!has_key("10000000000000\n", KEY_POWER));
        assert!(!has_key("", KEY_POWER));
        assert!(!has_key("zz 0", KEY_POWER));
    }

    #[test]
    fn the_group_is_found_among_others() {
        let group = |name: &[u8], id: u32| {
            let name = attribute(GROUP_NAME, name);
            let id = attribute(GROUP_ID, &id.to_ne_bytes());
            attribute(1, &[id, name].concat())
        };
        let groups = [group(b"other\0", 4), group(b"acpi_mc_group\0", 5)].concat();
        let family = [
            attribute(CTRL_FAMILY_NAME, b"acpi_event\0"),
            attribute(CTRL_MCAST_GROUPS, &groups),
        ];
        assert_eq!(group_in(&message(&family.concat())), Some(5));
        assert_eq!(group_in(&message(&family[0])), None);
        assert_eq!(group_in(&[]), None);
    }

    #[test]
    fn an_acpi_press_differs_from_other_events() {
        let event = |class: &[u8]| {
            let mut value = class.to_vec();
            value.resize(44, 0);
            message(&attribute(1, &value))
        };
        assert!(has_acpi_press(&event(b"button/power")));
        assert!(!has_acpi_press(&event(b"ac_adapter")));
        assert!(!has_acpi_press(&[]));
    }

    #[test]
    fn the_kernel_of_this_machine_answers_the_request() {
        match acpi_socket() {
            Ok(_) => {}
            // A container's kernel may lack ACPI. It must still have understood the request.
            Err(error) => assert!(
                matches!(
                    error.raw_os_error(),
                    None | Some(libc::ENOENT | libc::EPERM)
                ),
                "{error}"
            ),
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_attributes_do_not_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)
        ) {
            let _ = attributes(&bytes).count();
            let _ = group_in(&bytes);
            let _ = has_acpi_press(&bytes);
            let _ = has_press(&bytes);
        }
    }
}
