//! Memory that control groups leave to a process (cgroup v2, Documentation/admin-guide/cgroup-v2.rst). A container has
//! the memory of its group, and sees all memory of the host in `/proc/meminfo`.

use std::fs;
use std::path::Path;

/// Where the hierarchy of version 2 is mounted: alone, or beside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What a group's limit leaves to all of its processes together, in KiB: of this process's group and the groups around it
/// the smallest. Nothing where none has a limit.
pub(crate) fn left_kib() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own(&groups)?;
    let mounts = MOUNTS.iter().map(Path::new);
    mounts.filter_map(|mount| left_kib_below(mount, own)).min()
}

/// The group of version 2 in cgroups(7)' list of a process's groups.
fn own(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A container may see the top of its own groups where `mount` is, and a path of the host's in `own`: then there is no
/// such folder, and the limit is that of the top.
fn left_kib_below(mount: &Path, own: &str) -> Option<u64> {
    let own = mount.join(own.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(mount));
    groups.filter_map(left_kib_of).min()
}

/// Pages of files count as used by the group, and the kernel takes them back before it refuses memory.
fn left_kib_of(group: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // Without a limit the file has no number.
    let (most, current) = (number("memory.max")?, number("memory.current")?);
    let statistics = read("memory.stat").unwrap_or_default();
    let of_files = ["active_file ", "inactive_file "].map(|name| field(&statistics, name));
    let used = current.saturating_sub(of_files.iter().sum());
    Some(most.saturating_sub(used) >> 10)
}

/// 0 where it is not there.
fn field(statistics: &str, name: &str) -> u64 {
    let mut lines = statistics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_version_2_is_found_among_others() {
        let mixed = "4:memory:/a\n1:cpu:/\n0::/user.slice/b\n";
        assert_eq!(own(mixed), Some("/user.slice/b"));
        assert_eq!(own("4:memory:/a\n"), None);
    }

    #[test]
    fn the_tightest_group_decides_and_files_in_memory_do_not_count() {
        let mount = tempfile::tempdir().expect("a folder of this test's own");
        let group = |path: &str, most: &str, current: &str, statistics: &str| {
            let folder = mount.path().join(path);
            fs::create_dir_all(&folder).expect("ours");
            let files = [
                ("memory.max", most),
                ("memory.current", current),
                ("memory.stat", statistics),
            ];
            for (name, text) in files {
                fs::write(folder.join(name), text).expect("ours");
            }
        };
        let left = |own: &str| left_kib_below(mount.path(), own);
        assert_eq!(left("/a/b"), None, "no limits");
        group("a/b", "max\n", "4096\n", "");
        assert_eq!(left("/a/b"), None, "no limit");
        group("a", "1048576\n", "262144\n", "anon 1\n");
        assert_eq!(left("/a/b"), Some(768));
        let cached = "anon 1\ninactive_file 65536\nactive_file 65536\nfile 200000\n";
        group("a", "1048576\n", "262144\n", cached);
        assert_eq!(left("/a/b"), Some(896));
        group("a/b", "131072\n", "262144\n", "");
        assert_eq!(left("/a/b"), Some(0), "beyond its limit");
        // The top of a container's groups, under the host's name for it.
        group("", "2097152\n", "1048576\n", "");
        assert_eq!(left("/system.slice/container"), Some(1024));
        assert_eq!(left("/"), Some(1024));
    }
}
