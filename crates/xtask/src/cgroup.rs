//! Memory that control groups leave to a process (Documentation/admin-guide/cgroup-v2.rst, and
//! cgroup-v1/memory.rst). A container has the memory of its group, but `/proc/meminfo` shows all
//! memory of the host.

use std::fs;
use std::path::Path;

/// Where a version of control groups reports memory.
struct Hierarchy {
    /// Where it is mounted.
    mounts: &'static [&'static str],
    /// The group's files with its limit and with what its processes use, in bytes.
    limit: &'static str,
    current: &'static str,
    /// In `memory.stat`: file pages, which the kernel can reclaim.
    of_files: [&'static str; 2],
}

/// Version 2, alone or beside version 1.
const UNIFIED: Hierarchy = Hierarchy {
    mounts: &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
    limit: "memory.max",
    current: "memory.current",
    of_files: ["active_file ", "inactive_file "],
};

/// Version 1, on older systems. The limit includes the groups below, but `memory.stat` includes
/// them only in the numbers with this prefix.
const OF_MEMORY: Hierarchy = Hierarchy {
    mounts: &["/sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    of_files: ["total_active_file ", "total_inactive_file "],
};

/// What the limit of this process's group leaves to all its processes together, in KiB. The groups
/// above count too, and the smallest number is taken. `None` if no group has a limit.
pub(crate) fn left_kib() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let known = [
        (UNIFIED, own(&groups, "")),
        (OF_MEMORY, own(&groups, "memory")),
    ];
    let left = known.iter().flat_map(|(hierarchy, own)| {
        let mounts = hierarchy.mounts.iter().map(Path::new);
        // A hierarchy that the system does not have has no files, and sets no limit.
        mounts.filter_map(move |mount| hierarchy.left_kib_below(mount, (*own)?))
    });
    left.min()
}

/// The group of the hierarchy with this controller, from the list in cgroups(7) of a process's
/// groups. Version 2 is the entry without controllers.
fn own<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let mut controllers = controllers.split(',');
        controllers.any(|it| it == controller).then_some(path)
    })
}

impl Hierarchy {
    /// A container may see the root of its own groups at `mount`, and a path of the host in `own`.
    /// Then there is no such folder, and the limit of the root counts.
    fn left_kib_below(&self, mount: &Path, own: &str) -> Option<u64> {
        let own = mount.join(own.trim_start_matches('/'));
        // The limits of the groups above apply too.
        let groups = own.ancestors().take_while(|group| group.starts_with(mount));
        groups.filter_map(|group| self.left_kib_of(group)).min()
    }

    /// File pages count as used by the group, but the kernel reclaims them before it refuses
    /// memory.
    fn left_kib_of(&self, group: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        // Without a limit, the file of version 2 has no number, and that of version 1 has a number
        // larger than any memory.
        let (most, current) = (number(self.limit)?, number(self.current)?);
        let statistics = read("memory.stat").unwrap_or_default();
        let of_files = self.of_files.map(|name| field(&statistics, name));
        let used = current.saturating_sub(of_files.iter().sum());
        Some(most.saturating_sub(used) >> 10)
    }
}

/// 0 if the field does not exist.
fn field(statistics: &str, name: &str) -> u64 {
    let mut lines = statistics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_both_versions_are_found_among_others() {
        let mixed = "4:cpuset,memory:/a\n1:cpu:/\n0::/user.slice/b\n";
        assert_eq!(own(mixed, ""), Some("/user.slice/b"));
        assert_eq!(own(mixed, "memory"), Some("/a"));
        assert_eq!(own("4:memory:/a\n", ""), None);
        assert_eq!(own("0::/memory\n", "memory"), None);
    }

    #[test]
    fn a_limit_of_version_1_counts() {
        let mount = tempfile::tempdir().expect("a folder of this test's own");
        let write = |name: &str, text: &str| {
            let path = mount.path().join("docker/a").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("ours");
            fs::write(path, text).expect("ours");
        };
        let left = || OF_MEMORY.left_kib_below(mount.path(), "/docker/a");
        assert_eq!(left(), None);
        write("memory.usage_in_bytes", "1048576\n");
        write(
            "memory.stat",
            "inactive_file 7\ntotal_inactive_file 524288\n",
        );
        write("memory.limit_in_bytes", "2097152\n");
        assert_eq!(left(), Some(1536));
        // No limit.
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert!(left().is_some_and(|kib| kib > 1 << 50));
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
        let left = |own: &str| UNIFIED.left_kib_below(mount.path(), own);
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
        // The root of a container's groups, under the host's name for it.
        group("", "2097152\n", "1048576\n", "");
        assert_eq!(left("/system.slice/container"), Some(1024));
        assert_eq!(left("/"), Some(1024));
    }
}
