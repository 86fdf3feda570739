use super::*;

#[test]
fn a_package_is_missed_by_what_it_provides() {
    let folders = [PathBuf::from("/bin"), PathBuf::from("/usr/sbin")];
    let present = ["/usr/sbin/sgdisk", "/usr/share/OVMF/OVMF_CODE.fd"];
    let lacking = missing_with(PACKAGES, &folders, |path| {
        present.iter().any(|file| Path::new(file) == path)
    });
    let lacking = names(&lacking);
    assert!(
        !lacking.contains(&"gdisk"),
        "found in a folder for administrators"
    );
    assert!(!lacking.contains(&"ovmf"), "either firmware file will do");
    assert!(lacking.contains(&"make") && lacking.contains(&"libelf-dev"));
    assert_eq!(lacking.len(), PACKAGES.len() - 2);
}

#[test]
fn the_line_to_run_names_each_package_once() {
    let line = install_line(PACKAGES);
    for package in PACKAGES {
        let count = line.split(' ').filter(|word| *word == package.name).count();
        assert_eq!(count, 1, "{}", package.name);
    }
}

#[test]
fn a_boot_needs_no_browser_and_no_judge_of_others() {
    let built: Vec<_> = PACKAGES.iter().filter(|p| !p.is_for_tests()).collect();
    for (name, for_tests) in [("chromium", true), ("make", false), ("e2fsprogs", false)] {
        let package = PACKAGES.iter().find(|package| package.name == name);
        assert_eq!(
            package.map(DebianPackage::is_for_tests),
            Some(for_tests),
            "{name}"
        );
    }
    assert!(
        built
            .iter()
            .all(|package| !package.why.starts_with("tests"))
    );
    assert!(built.len() < PACKAGES.len());
}

#[test]
fn what_compiles_kernel_and_driver_is_needed_there_only() {
    let needed = |compile, test| {
        let purpose = PackagePurpose {
            compile,
            test,
            npm: true,
            peers: true,
        };
        let needed = PACKAGES.iter().filter(|package| purpose.needs(package));
        needed.map(|package| package.name).collect::<Vec<_>>()
    };
    let (boots, tests) = (needed(false, false), needed(false, true));
    for name in ["bc", "libelf-dev", "llvm-19-dev", "ninja-build"] {
        assert!(!boots.contains(&name) && !tests.contains(&name), "{name}");
        assert!(needed(true, false).contains(&name), "{name}");
    }
    // These are inputs of the cached kernels' and drivers' names, and tests use others.
    for name in ["binutils", "g++", "lz4", "make", "python3-pip", "xz-utils"] {
        assert!(boots.contains(&name) && tests.contains(&name), "{name}");
    }
    assert_eq!(needed(true, true).len(), PACKAGES.len());
    // The prefix is the same wherever a package is needed only there.
    let compiling = |package: &&DebianPackage| package.why.starts_with("compiling");
    let compiling: Vec<_> = PACKAGES.iter().filter(compiling).collect();
    assert!(compiling.iter().all(|package| package.is_for_compiling()));
    assert_eq!(compiling.len(), PACKAGES.len() - tests.len());
}

#[test]
fn npm_is_needed_where_something_is_fetched_with_it() {
    let npm = |npm| {
        let purpose = PackagePurpose {
            compile: true,
            test: true,
            npm,
            peers: true,
        };
        let mut needed = PACKAGES.iter().filter(|package| purpose.needs(package));
        needed.any(|package| package.name == "npm")
    };
    assert!(npm(true) && !npm(false));
}

#[test]
fn what_benchmarks_compare_with_is_needed_there_only() {
    let needed = |peers| {
        let purpose = PackagePurpose {
            compile: true,
            test: true,
            npm: true,
            peers,
        };
        let needed = PACKAGES.iter().filter(|package| purpose.needs(package));
        needed.map(|package| package.name).collect::<Vec<_>>()
    };
    let (tests, benches) = (needed(false), needed(true));
    for name in ["bsdiff", "casync", "mmdebstrap", "xdelta3"] {
        assert!(!tests.contains(&name) && benches.contains(&name), "{name}");
    }
    assert_eq!(benches.len(), PACKAGES.len());
}

#[test]
fn packages_are_sorted_and_say_why() {
    assert!(PACKAGES.windows(2).all(|pair| pair[0].name < pair[1].name));
    assert!(PACKAGES.iter().all(|package| !package.why.is_empty()));
}

#[test]
fn a_container_is_known_by_its_root() {
    let disk = "23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw";
    let layer = "61 23 0:40 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b";
    let elsewhere = "61 23 0:40 / /mnt rw,relatime - overlay overlay rw,lowerdir=/a";
    assert!(root_is_overlay(layer));
    assert!(
        root_is_overlay(&[disk, layer].join("\n")),
        "the later one covers"
    );
    assert!(!root_is_overlay(&[layer, disk].join("\n")));
    assert!(!root_is_overlay(&[disk, elsewhere].join("\n")));
    assert!(!root_is_overlay(""));
}

#[test]
fn what_went_while_others_came_is_known() {
    let [one, two, three] = [PACKAGES[0], PACKAGES[1], PACKAGES[2]];
    // One was installed, two is still missing, and three was removed.
    let gone = beside(&[two, three], &[one, two]);
    assert_eq!(names(&gone), [three.name]);
}
