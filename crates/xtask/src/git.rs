//! Git commands for a folder.

use std::path::Path;
use std::process::Command;

/// If these variables are set, as in a hook, git works on their repository instead of the folder's.
const REPOSITORY: [&str; 6] = [
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
];

/// Git in a folder, for the folder's repository.
#[must_use]
pub fn git(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder);
    for variable in REPOSITORY {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_of_another_repository_leads_git_nowhere_else() {
        let command = git(Path::new("/"));
        let removed: Vec<_> = command
            .get_envs()
            .filter(|(_, set)| set.is_none())
            .collect();
        assert!(removed.iter().any(|(name, _)| *name == "GIT_DIR"));
        assert_eq!(removed.len(), REPOSITORY.len());
    }
}
