//! The container image: its file system as the Containerfile lays it out, and the daemon as the only program in it. The
//! tests have no container runtime, so namespaces and another root stand for one.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::account::find;

/// The user that the image runs as, and its group.
pub const USER: u32 = 65532;

pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn containerfile() -> String {
    fs::read_to_string(file("deploy/container/Containerfile")).unwrap()
}

/// The arguments of every instruction of this name.
fn instructions(name: &str) -> Vec<String> {
    let text = containerfile();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    lines.map(str::to_owned).collect()
}

/// What the image's file system is.
pub struct Image {
    dir: TempDir,
}

impl Image {
    pub fn assemble() -> Self {
        let dir = TempDir::with_prefix("image-").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let image = Self { dir };
        let program = env!("CARGO_BIN_EXE_tunnelkeeper");
        let status =
            Command::new(file("deploy/container/assemble")).arg(program).arg(image.path("/")).status();
        assert!(status.unwrap().success());
        image
    }

    /// Where a path of the image is for us.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join("root").join(inside.trim_start_matches('/'))
    }

    /// A command line of the product in it, as its user. The process is the first one that it sees, and has nothing but
    /// what the image gives it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let user = USER.to_string();
        fs::create_dir_all(self.path("/proc")).unwrap();
        let mut command = Command::new(find("unshare"));
        command.args(["--pid", "--fork", "--mount", "--root"]).arg(self.path("/"));
        command.args(["--mount-proc", "--setgid", &user, "--setuid", &user]);
        command.arg("/usr/local/bin/tunnelkeeper").args(arguments);
        command.env_clear().env("PATH", "/usr/local/bin");
        command
    }

    /// Writes files as the kubelet does into a volume of a pod whose `fsGroup` is the image's group: root's and that
    /// group's, behind links that it exchanges when they change. Needs root.
    pub fn mount(&self, at: &str, mode: u32, files: &BTreeMap<String, String>) {
        let volume = self.path(at);
        let version = volume.join("..2026_11_22_12_00_00.1");
        fs::create_dir_all(&version).unwrap();
        for (name, content) in files {
            let file = version.join(name);
            fs::write(&file, content).unwrap();
            give(&file, mode | 0o440);
            symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
        }
        symlink(version.file_name().unwrap(), volume.join("..data")).unwrap();
        give(&version, 0o2755);
        give(&volume, 0o2777);
    }

    /// Everything in it that is a file.
    pub fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut directories) = (Vec::new(), vec![self.path("/")]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let found = if entry.file_type().unwrap().is_dir() { &mut directories } else { &mut files };
                found.push(entry.path());
            }
        }
        files.sort();
        files
    }
}

fn give(path: &Path, mode: u32) {
    chown(path, Some(0), Some(USER)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Only root makes files of another's, and changes the root.
pub fn may_change_root() -> bool {
    let may = nix::unistd::geteuid().is_root();
    if !may {
        eprintln!("not run: this test needs root");
    }
    may
}

#[test]
fn the_image_holds_the_program_and_what_it_is_linked_with() {
    let image = Image::assemble();
    let files = image.files();
    let is_program = |path: &&PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o111 != 0;
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let (libraries, programs): (Vec<String>, Vec<String>) =
        files.iter().filter(is_program).map(name).partition(|name| name.contains(".so"));
    assert_eq!(programs, ["tunnelkeeper"]);
    assert!(libraries.iter().any(|name| name.starts_with("libc.")), "{libraries:?}");
    assert!(libraries.iter().any(|name| name.starts_with("ld-linux")), "{libraries:?}");
    let others = files.len() - libraries.len() - 1;
    assert_eq!(others, 4, "authorities, users, groups and where names are looked up: {files:?}");
}

#[test]
fn the_image_is_built_from_what_is_here_and_runs_as_nobody() {
    let from = instructions("FROM");
    let (compiler, last) = (from.first().unwrap(), from.last().unwrap());
    let version: Vec<u32> = compiler
        .strip_prefix("docker.io/library/rust:")
        .and_then(|tag| tag.split('-').next())
        .map(|version| version.split('.').map(|part| part.parse().unwrap()).collect())
        .unwrap();
    let manifest = fs::read_to_string(file("Cargo.toml")).unwrap();
    let needed = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let needed: Vec<u32> = needed.trim_matches('"').split('.').map(|part| part.parse().unwrap()).collect();
    assert!(version.len() == 3 && version >= needed, "{compiler} is not pinned, or too old for {needed:?}");
    assert_eq!((from.len(), last.as_str()), (2, "scratch"));
    assert_eq!(instructions("USER"), [format!("{USER}:{USER}")]);
    assert_eq!(instructions("ENTRYPOINT"), ["[\"/usr/local/bin/tunnelkeeper\"]"]);
    let copies = instructions("COPY");
    let here = copies.iter().filter(|copy| !copy.starts_with("--from"));
    let here: Vec<&str> = here.flat_map(|copy| copy.rsplit_once(' ').unwrap().0.split(' ')).collect();
    assert!(here.len() >= 4 && here.iter().all(|source| file(source).exists()), "{here:?}");
    // What is copied before the build is all that it needs.
    let copy = TempDir::with_prefix("source-").unwrap();
    let sources = here.iter().filter(|source| !source.starts_with("deploy/"));
    let copied =
        Command::new("cp").arg("-r").args(sources.map(|source| file(source))).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--edges=normal,build"]).current_dir(copy.path());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(included_from_elsewhere(&copy.path().join("src")), Vec::<String>::new());
    assert!(containerfile().contains("cargo build --locked --release"));
}

/// Files that the program is built with though they do not lie beside its source.
fn included_from_elsewhere(source: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(included_from_elsewhere(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let included =
                text.split("include_str!(\"").skip(1).chain(text.split("include_bytes!(\"").skip(1));
            let names = included.filter_map(|rest| rest.split('"').next());
            found.extend(names.filter(|name| !source.join(name).exists()).map(str::to_owned));
        }
    }
    found
}

#[test]
fn without_a_configuration_it_says_so() {
    if !may_change_root() {
        return;
    }
    let output = Image::assemble().command(&["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/etc/tunnelkeeper/tunnelkeeper.toml: there is no such file"), "{said}");
}
