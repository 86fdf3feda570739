use std::fs;
use std::path::Path;
use std::process::Command;

/// The directory of the namespaces that iproute2 named.
const NAMESPACES: &str = "/run/netns";

/// Removes network namespaces that killed test programs left. Their names are `prefix`, the number of the process
/// that made them, and a letter with further text after it.
///
/// A test calls this before it makes namespaces of its own. Those of a running process stay, also when it is another
/// process that got the same number.
pub fn remove_orphaned_namespaces(prefix: &str) {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| maker(name, prefix));
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another program's test may have removed it meanwhile.
            let _ = Command::new("ip")
                .args(["netns", "del"])
                .arg(&name)
                .output();
        }
    }
}

/// The process that made the namespace of this name.
fn maker(name: &str, prefix: &str) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_is_read_between_the_prefix_and_a_letter() {
        assert_eq!(maker("alkf4711n", "alkf"), Some(4711));
        assert_eq!(maker("alkt17n3c", "alkt"), Some(17));
        for name in [
            "alku4711n",
            "alkfn",
            "alkf4711",
            "alkf99999999999n",
            "other",
        ] {
            assert_eq!(maker(name, "alkf"), None, "{name}");
        }
    }

    #[test]
    fn namespaces_of_a_process_that_ended_go_and_those_of_this_one_stay() {
        let ip = |arguments: &[&str]| Command::new("ip").args(arguments).output();
        let mut child = Command::new("true").spawn().expect("every system has it");
        child.wait().expect("it is our child");
        let own = std::process::id();
        let [gone, here] = [child.id(), own].map(|pid| format!("alkq{pid}n"));
        let made = [&gone, &here].map(|name| ip(&["netns", "add", name]));
        let are_made = made
            .iter()
            .all(|made| made.as_ref().is_ok_and(|made| made.status.success()));
        if are_made {
            remove_orphaned_namespaces("alkq");
            let there = |name: &str| Path::new(NAMESPACES).join(name).exists();
            assert!(!there(&gone) && there(&here));
            let removed = ip(&["netns", "del", &here]).expect("it was found before");
            assert!(removed.status.success());
        } else {
            crate::skip!("network namespaces", "`ip netns add` failed: {made:?}");
        }
    }
}
