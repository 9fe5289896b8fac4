//! What is done to the mount while it is read.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::common::poll;
use crate::dataset::{Objects, some_size};
use crate::report::{backing_files, status};
use crate::world::{Event, STALE_MAX, World, lock, said};

/// Pins held at once: most of the cache stays evictable.
const PINS_MAX: usize = 8;

/// A backing file that was not written for so long has no fetch under way.
const IDLE: Duration = Duration::from_secs(3);

/// A block of the disk.
const PAGE: u64 = 4096;

/// RELEASE comes a little after `close`.
const RELEASE_MAX: Duration = Duration::from_secs(10);

/// Replaces, deletes and adds objects, every second one while it is open.
pub(crate) fn change(world: &World, mut dice: fastrand::Rng) {
    while !world.is_over() {
        world.pause(Duration::from_millis(dice.u64(50..800)));
        let object = if dice.bool() {
            let reader = dice.usize(..world.open.len());
            world.open[reader].load(Ordering::Relaxed) as usize
        } else {
            dice.usize(..world.objects.count())
        };
        match (world.objects.size(object), dice.u8(..10)) {
            (Some(_), 0..2) => {
                world.objects.delete(object);
                world.count("objects deleted");
            }
            // Versions of one size are the hardest to tell apart.
            (Some(size), 2..6) => {
                world.objects.change(object, size);
                world.count("objects replaced");
            }
            (was, _) => {
                world.objects.change(object, some_size(&mut dice));
                world.count(if was.is_some() { "objects replaced" } else { "objects added" });
            }
        }
        world.happened(Event::Change);
    }
}

/// Runs the commands that a user has for the cache.
pub(crate) fn command(world: &World, mut dice: fastrand::Rng) {
    let mut pins: Vec<usize> = Vec::new();
    while !world.is_over() {
        world.pause(Duration::from_millis(dice.u64(500..3_000)));
        let object = dice.usize(..world.objects.count());
        let folder = dice.u8(..10) == 0;
        match dice.u8(..100) {
            0..45 => {
                run(world, "evict", Some((object, folder)));
                world.happened(Event::Evict);
            }
            45..48 => {
                run(world, "evict", None);
                world.happened(Event::Evict);
            }
            48..68 => run(world, "verify", Some((object, folder))),
            68..71 => run(world, "verify", None),
            _ if pins.len() < PINS_MAX && dice.bool() => {
                run(world, "pin", Some((object, false)));
                pins.push(object);
            }
            _ if !pins.is_empty() => {
                let object = pins.swap_remove(dice.usize(..pins.len()));
                run(world, "unpin", Some((object, false)));
            }
            _ => {}
        }
    }
}

/// Runs one on an object, on its folder, or on all.
fn run(world: &World, verb: &str, target: Option<(usize, bool)>) {
    let _one = lock(&world.commands);
    if !world.is_alive() {
        return;
    }
    let (epoch, began) = (world.epoch(), Instant::now());
    let mut args = vec![verb.to_owned()];
    match target {
        Some((object, folder)) => {
            let path = Objects::path(object);
            let path = if folder { &path[..2] } else { &path };
            args.push(world.dir.join(path).display().to_string());
        }
        None if verb == "evict" => args.push("--all".to_owned()),
        None => {}
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = world.warmfs.run(&args);
    if output.status.success() {
        return world.count(&format!("{verb} done"));
    }
    let since = began.checked_sub(STALE_MAX).unwrap_or(began);
    let changed = target.is_some_and(|(object, folder)| {
        folder || verb == "unpin" || world.objects.changed_since(object, since)
    });
    match (world.epoch() == epoch, changed) {
        (false, _) => world.count(&format!("{verb} failed, daemon killed")),
        (true, true) => world.count(&format!("{verb} refused, object changed or deleted")),
        (true, false) => world.fail(&format!("{verb} failed"), &said(&output)),
    }
}

/// Damages a backing file now and then while nobody has anything open.
pub(crate) fn damage(world: &World, mut dice: fastrand::Rng) {
    while !world.is_over() {
        world.pause(Duration::from_millis(dice.u64(6_000..16_000)));
        let _no_job = lock(&world.commands);
        world.wants_quiet.store(true, Ordering::Relaxed);
        let _quiet = world.quiet.write().unwrap_or_else(PoisonError::into_inner);
        world.wants_quiet.store(false, Ordering::Relaxed);
        if world.is_over() || !poll(RELEASE_MAX, || nothing_is_open(world)) {
            continue;
        }
        let mut files = backing_files(&world.warmfs.cache());
        dice.shuffle(&mut files);
        let Some(file) = files.into_iter().find(is_idle) else { continue };
        match damage_one(&file, &mut dice) {
            Some(object) if object < world.objects.count() => {
                world.happened(Event::Damage);
                world.count("backing files damaged");
                lock(&world.urgent).push(object);
            }
            _ => {}
        }
    }
}

/// Whether the daemon saw the RELEASE of every OPEN. Nobody has a file open
/// whose daemon is dead.
fn nothing_is_open(world: &World) -> bool {
    let Some(status) = status(world) else { return true };
    let ops = &status["mounts"][0]["fuse"]["ops"];
    ops["open"].as_u64() == ops["release"].as_u64()
}

fn is_idle(path: &PathBuf) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > IDLE))
}

/// Flips a bit or clears a page where the file has data; says which object's.
fn damage_one(path: &Path, dice: &mut fastrand::Rng) -> Option<usize> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let from = dice.u64(..size.max(1));
    // SAFETY: a plain system call on an open descriptor.
    let data = unsafe { libc::lseek(file.as_raw_fd(), from as i64, libc::SEEK_DATA) };
    let at = u64::try_from(data).ok()?;
    let mut word = [0; 16];
    let has_word = file.read_exact_at(&mut word, at / 16 * 16).is_ok();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).ok()?;
    if dice.u8(..4) == 0 {
        // Within a block that is there: the cache does not grow by it.
        let page = at / PAGE * PAGE;
        let len = PAGE.min(size - page);
        file.write_all_at(&vec![0; len as usize], page).ok()?;
    } else {
        file.write_all_at(&[byte[0] ^ 1 << dice.u8(..8)], at).ok()?;
    }
    let object = u32::from_le_bytes(word[4..8].try_into().ok()?);
    // The shortest do not tell whose they are.
    Some(if has_word { object.wrapping_sub(1) as usize } else { 0 })
}

/// Kills the daemon at random moments of the first and of the last third.
pub(crate) fn kill(world: &World, mut dice: fastrand::Rng) {
    let third = world.options.duration().as_secs_f64() / 3.0;
    let first = world.options.kills / 2;
    let mut moments = Vec::new();
    for (begin, kills) in [(0.0, first), (2.0 * third, world.options.kills - first)] {
        let slot = third / f64::from(kills.max(1));
        let moment = |n| begin + slot * (f64::from(n) + 0.1 + 0.8 * dice.f64());
        moments.extend((0..kills).map(moment));
    }
    for moment in moments {
        let due = Duration::from_secs_f64(moment);
        world.pause(due.saturating_sub(world.began.elapsed()));
        if world.is_over() {
            return;
        }
        world.kill();
    }
}
