//! `warmfs fstab`: mounts that the system knows of, by /etc/fstab and mount(8).

mod options;
mod table;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, Subcommand};

use self::table::{Entry, FS_TYPE, Table};
use super::args::MountArgs;
use super::{Cli, launch, mount_helper, output};
use crate::config::MountRequest;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::preflight;

/// What a line begins with: a remote that cannot be reached must not hold up the boot.
const BASE_OPTIONS: [&str; 2] = ["ro", "nofail"];

/// For what is not on this machine: mounted once there is a network.
const NETWORK_OPTION: &str = "_netdev";

/// Mounts for /etc/fstab and mount(8)
#[derive(Debug, Args)]
pub(super) struct FstabArgs {
    #[command(subcommand)]
    verb: FstabVerb,
}

#[derive(Debug, Subcommand)]
enum FstabVerb {
    Add(Box<AddArgs>),
    Remove(RemoveArgs),
    List(ListArgs),
}

/// Write a line, and have mount(8) know the type warmfs
///
/// Afterwards `mount DIR` works, at boot too. Takes the options of `warmfs mount`, and
/// with -o those of mount(8) and systemd: -o noauto,x-systemd.automount.
#[derive(Debug, Args)]
struct AddArgs {
    #[command(flatten)]
    mount: MountArgs,
    #[command(flatten)]
    place: Place,
    /// Where mount(8) looks for helpers
    #[arg(long, value_name = "DIR", default_value = "/sbin")]
    sbin: PathBuf,
}

/// Remove the line of a folder; what is mounted stays so
#[derive(Debug, Args)]
struct RemoveArgs {
    /// The mount point
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// Show the lines that are about warmfs
#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// The table to change
    #[arg(long, value_name = "FILE", default_value = "/etc/fstab")]
    fstab: PathBuf,
}

impl FstabArgs {
    /// What is to be passed by mount(8).
    pub(super) fn options(&self) -> &[String] {
        match &self.verb {
            FstabVerb::Add(args) => &args.mount.options,
            FstabVerb::Remove(_) | FstabVerb::List(_) => &[],
        }
    }
}

/// The command line with a help that leaves out what `warmfs mount --help` says.
pub(super) fn shorten_help(command: Command) -> Command {
    command.mut_subcommand("fstab", |fstab| {
        fstab.mut_subcommand("add", |add| {
            add.after_help(None::<&str>).mut_args(|arg| {
                let is_of_mount = arg.get_long().is_some_and(|long| !options::OWN.contains(&long));
                if is_of_mount { arg.hide(true) } else { arg }
            })
        })
    })
}

/// Shows or changes the table.
pub(super) fn run(args: FstabArgs) -> Result<(), ErrorReply> {
    match args.verb {
        FstabVerb::Add(args) => add(*args),
        FstabVerb::Remove(args) => remove(&args),
        FstabVerb::List(args) => list(&args.place),
    }
}

fn add(args: AddArgs) -> Result<(), ErrorReply> {
    let given = given_options()?;
    let mut passed: Vec<String> = args.mount.options.clone();
    passed.retain(|option| !option.trim().is_empty());
    let plan = args.mount.check()?;
    if !plan.more.is_empty() {
        return Err(ErrorReply::new(ErrorCode::Invalid, "a line of fstab is about one mount")
            .with_hint("run `warmfs fstab add` for each"));
    }
    let entry = entry(&plan.request, &passed, given)?;
    let mut table = args.place.read()?;
    if let Some((number, there)) = table.entries().find(|(_, there)| there.dir == entry.dir) {
        let (dir, fstab) = (entry.dir.display(), args.place.fstab.display());
        let message = format!("{dir} is in {fstab} already, line {number}: {}", there.source);
        let hint = match there.is_ours() {
            true => format!("`warmfs fstab remove {dir}` first"),
            false => "choose another mount point".to_owned(),
        };
        return Err(ErrorReply::new(ErrorCode::MountPoint, message).with_hint(hint));
    }
    // Before the line, which is of no use without.
    install(&args.sbin)?;
    table.push(&entry);
    args.place.write(&table)?;
    output::line(&entry.to_line())
}

/// The line for a mount. What the user said of booting and of reading comes as it is.
fn entry(
    request: &MountRequest,
    passed: &[String],
    given: Vec<String>,
) -> Result<Entry, ErrorReply> {
    let uri = preflight::check_uri(request)?.to_string();
    let mut options: Vec<String> = BASE_OPTIONS.map(str::to_owned).to_vec();
    if !uri.starts_with("file://") {
        options.push(NETWORK_OPTION.to_owned());
    }
    for option in given.into_iter().chain(passed.iter().cloned()) {
        if !options.contains(&option) {
            options.push(option);
        }
    }
    let options = options.join(",");
    let dir = request.dir.clone().ok_or_else(|| {
        ErrorReply::new(ErrorCode::Invalid, "a line of fstab needs a mount point")
            .with_hint("leave out --no-fuse")
    })?;
    Ok(Entry { source: uri, dir, fs_type: FS_TYPE.to_owned(), options })
}

/// The options that this process was given, as they were written: what they were parsed
/// to would not tell them from defaults.
fn given_options() -> Result<Vec<String>, ErrorReply> {
    let wrong = || ErrorReply::new(ErrorCode::Internal, "the command line is read twice");
    let mut command = Cli::command();
    command.build();
    let matches = command.clone().try_get_matches_from(std::env::args_os()).map_err(|_| wrong())?;
    let matches = matches.subcommand_matches("fstab").and_then(|m| m.subcommand_matches("add"));
    let add = command.find_subcommand("fstab").and_then(|verb| verb.find_subcommand("add"));
    let (Some(add), Some(matches)) = (add, matches) else { return Err(wrong()) };
    options::given(add, matches)
}

fn remove(args: &RemoveArgs) -> Result<(), ErrorReply> {
    let dir = preflight::resolve(&args.dir)?;
    let mut table = args.place.read()?;
    let ours = table.entries().filter(|(_, entry)| entry.is_ours() && entry.dir == dir);
    let numbers: Vec<usize> = ours.map(|(number, _)| number).collect();
    if numbers.is_empty() {
        let (dir, fstab) = (dir.display(), args.place.fstab.display());
        return Err(ErrorReply::new(
            ErrorCode::NotFound,
            format!("{fstab} mounts no warmfs at {dir}"),
        )
        .with_hint("`warmfs fstab list` shows what it mounts"));
    }
    table.remove(&numbers);
    args.place.write(&table)?;
    let (dir, fstab) = (dir.display(), args.place.fstab.display());
    output::line(&format!("{dir} is no longer in {fstab}"))
}

fn list(place: &Place) -> Result<(), ErrorReply> {
    for (_, entry) in place.read()?.entries().filter(|(_, entry)| entry.is_ours()) {
        output::line(&format!("{} {} {}", entry.source, entry.dir.display(), entry.options))?;
    }
    Ok(())
}

impl Place {
    fn read(&self) -> Result<Table, ErrorReply> {
        Table::read(&self.fstab).map_err(|error| self.failed("read", &error))
    }

    fn write(&self, table: &Table) -> Result<(), ErrorReply> {
        table.write().map_err(|error| self.failed("write", &error))
    }

    fn failed(&self, what: &str, error: &io::Error) -> ErrorReply {
        let why = preflight::describe(error);
        let message = format!("cannot {what} {}: {why}", self.fstab.display());
        let reply = ErrorReply::new(ErrorCode::Denied, message);
        match error.kind() {
            io::ErrorKind::PermissionDenied => reply.with_hint("run it as root"),
            _ => reply,
        }
    }
}

/// Has mount(8) find this program under the helper's names. What is there and no link is
/// a package's.
fn install(sbin: &Path) -> Result<(), ErrorReply> {
    let program = launch::own_program();
    if program.starts_with("/proc") {
        let message = "the file of this program is gone";
        return Err(ErrorReply::new(ErrorCode::Environment, message)
            .with_hint("install it again, and run the new one"));
    }
    for name in mount_helper::NAMES {
        let path = sbin.join(name);
        let is_packaged = fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_symlink());
        if is_packaged || fs::read_link(&path).is_ok_and(|there| there == program) {
            continue;
        }
        let draft = sbin.join(format!(".{name}-{}", std::process::id()));
        let linked = symlink(&program, &draft).and_then(|()| fs::rename(&draft, &path));
        linked.map_err(|error| {
            let _ = fs::remove_file(&draft);
            let why = preflight::describe(&error);
            ErrorReply::new(ErrorCode::Denied, format!("cannot make {}: {why}", path.display()))
                .with_hint("run it as root")
        })?;
    }
    Ok(())
}
