//! What a server does with its data directory and what others have put there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use acervo::process::exit_status;
use rustix::fs::{CWD, Mode, mkfifoat};

use crate::support::{Group, exited_with};

/// Every file and directory below `path`, itself included, with the permission bits it has.
fn modes(path: &Path) -> Vec<(String, u32)> {
    let found = fs::symlink_metadata(path).unwrap();
    let mut all = vec![(path.display().to_string(), found.permissions().mode() & 0o7777)];
    if found.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            all.extend(modes(&entry.unwrap().path()));
        }
    }
    all
}

fn assert_private(path: &Path, umask: &str) {
    let modes = modes(path);
    assert!(modes.len() >= 5, "{modes:?}");
    for (name, mode) in modes {
        let right = if Path::new(&name).is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, right, "{name} has mode {mode:o} with umask {umask}");
    }
}

#[test]
fn a_data_directory_is_its_owners_alone_whatever_the_umask_and_whatever_it_was() {
    for umask in ["000", "0777"] {
        let mut group = Group::prepare(1, &["--console", "off"]);
        group.start_server_from_shell(0, &[], &format!("umask {umask}"));
        group.client().put("key", "value").unwrap();
        assert_private(&group.data_dir(0), umask);
        assert!(exited_with(group.terminate(0), 0));
        // As an earlier release, or somebody's chmod, has left it.
        fs::set_permissions(group.data_dir(0), PermissionsExt::from_mode(0o755)).unwrap();
        let store = group.data_dir(0).join("store/MANIFEST");
        fs::set_permissions(store, PermissionsExt::from_mode(0o644)).unwrap();
        group.start_server(0);
        group.client().put("key", "value").unwrap();
        assert_private(&group.data_dir(0), umask);
    }
}

#[test]
fn a_link_planted_before_the_first_start_is_replaced_and_never_followed() {
    let group = &mut Group::prepare(1, &["--console", "off"]);
    let target = group.dir.path().join("target");
    fs::write(&target, "somebody else's").unwrap();
    fs::create_dir(group.data_dir(0)).unwrap();
    symlink(&target, group.data_dir(0).join("IDENTITY.new")).unwrap();
    group.start_server(0);
    group.client().put("key", "value").unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "somebody else's");
}

#[test]
fn a_link_or_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for() {
    let mut group = Group::start(1, &["--console", "off"]);
    group.client().put("key", "value").unwrap();
    assert!(exited_with(group.terminate(0), 0));
    let log_file = fs::read_dir(group.data_dir(0).join("log")).unwrap().next().unwrap();
    let log_file = log_file.unwrap().path();
    let names = ["LOCK", "IDENTITY", "store/MANIFEST"].map(|name| group.data_dir(0).join(name));
    let aside = group.dir.path().join("aside");
    for path in names.iter().chain([&log_file]) {
        fs::rename(path, &aside).unwrap();
        for plant in ["pipe", "link"] {
            match plant {
                "pipe" => mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap(),
                _ => symlink(&aside, path).unwrap(),
            }
            group.start_server(0);
            assert!(exited_with(group.wait(0), i32::from(exit_status::FAILED)), "{plant} {path:?}");
            let log = group.log(0);
            let last = log.lines().last().unwrap();
            assert!(last.contains(&path.display().to_string()), "{plant}: {last}");
            assert!(last.contains("only a regular file is used"), "{plant}: {last}");
            fs::remove_file(path).unwrap();
        }
        fs::rename(&aside, path).unwrap();
    }
    group.start_server(0);
    assert_eq!(group.client().get("key").unwrap().value(), Some(&b"value"[..]));
}

#[test]
fn the_root_of_a_new_file_system_can_be_the_data_directory() {
    let mut group = Group::prepare(1, &["--console", "off"]);
    fs::create_dir_all(group.data_dir(0).join("lost+found")).unwrap();
    group.start_server(0);
    group.client().put("key", "value").unwrap();
    assert!(exited_with(group.terminate(0), 0));
    group.start_server(0);
    group.client().put("key", "again").unwrap();
}

#[test]
fn a_server_whose_data_directory_is_removed_or_replaced_stops_and_says_so() {
    type Loss = fn(&Path, &Path);
    let losses: [(&str, Loss); 3] = [
        ("removed", |path, _| fs::remove_dir_all(path).unwrap()),
        ("emptied", |path, _| {
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => fs::remove_dir_all(entry.path()).unwrap(),
                    false => fs::remove_file(entry.path()).unwrap(),
                }
            }
        }),
        ("replaced", |path, aside| {
            fs::rename(path, aside).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for (loss, lose) in losses {
        let mut group = Group::start(1, &["--console", "off"]);
        group.client().put("key", "value").unwrap();
        lose(&group.data_dir(0), &group.dir.path().join("aside"));
        assert!(exited_with(group.wait(0), i32::from(exit_status::FAILED)), "{loss}");
        let log = group.log(0);
        let last = log.lines().last().unwrap();
        assert!(last.contains("was removed or replaced"), "{loss}: {last}");
        assert!(last.contains(&group.data_dir(0).display().to_string()), "{loss}: {last}");
    }
}
