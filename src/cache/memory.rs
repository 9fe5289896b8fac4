//! How much memory bytes in flight may take, where nobody says so.
//!
//! The smaller of 256 MiB and a tenth of what the process may use: the machine's
//! memory, or the limit of any control group that it is in. Sources: proc(5) for
//! `MemTotal`, the kernel's `admin-guide/cgroup-v2` for `memory.max`, and
//! `admin-guide/cgroup-v1/memory` for `memory.limit_in_bytes`.

use std::fs;
use std::path::Path;

/// A line of 10 Gbit/s carries this in 200 ms: more in flight gains nothing.
const DEFAULT_MAX_BYTES: u64 = 256 << 20;

/// The part of the memory that may be used: 1 in so many bytes.
const PART: u64 = 10;

/// Least that fetching in parallel works with: four readers with one request of
/// 4 MiB each.
pub(super) const MEMORY_MIN_BYTES: u64 = 16 << 20;

/// The budget for bytes in flight on this machine.
pub(super) fn default_limit() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_bytes(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_of(total, group_limit(&groups, Path::new("/sys/fs/cgroup")))
}

fn limit_of(total: Option<u64>, group: Option<u64>) -> u64 {
    let usable = total.into_iter().chain(group).min().unwrap_or(u64::MAX);
    (usable / PART).clamp(MEMORY_MIN_BYTES, DEFAULT_MAX_BYTES)
}

/// `MemTotal` of /proc/meminfo.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit of the groups in /proc/self/cgroup and of those above them,
/// version 1 or 2. In a container its own group is the root of what is mounted.
fn group_limit(groups: &str, mounted: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let own = root.join(path.trim_start_matches('/'));
        let above = own.ancestors().take_while(|dir| dir.starts_with(&root));
        above.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_tenth_of_the_least_within_bounds() {
        assert_eq!(limit_of(Some(13 * GIB), None), DEFAULT_MAX_BYTES);
        assert_eq!(limit_of(Some(13 * GIB), Some(512 << 20)), (512 << 20) / 10);
        assert_eq!(limit_of(Some(GIB), Some(u64::MAX)), GIB / 10);
        assert_eq!(limit_of(None, Some(1 << 20)), MEMORY_MIN_BYTES);
        assert_eq!(limit_of(None, None), DEFAULT_MAX_BYTES);
    }

    #[test]
    fn the_machine_says_how_much_it_has() {
        let text = "MemFree: 5 kB\nMemTotal:       16384 kB\nBuffers: 1 kB\n";
        assert_eq!(total_bytes(text), Some(16 << 20));
        for wrong in ["", "MemTotal: many kB", "MemTotal: 7", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(total_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a/memory.max", "1000\n");
        put("a/b/memory.max", "max\n");
        put("memory/c/memory.limit_in_bytes", "700");
        put("memory/memory.limit_in_bytes", "9223372036854771712");
        let limit = |groups| group_limit(groups, root.path());
        assert_eq!(limit("0::/a/b\n"), Some(1000));
        assert_eq!(limit("0::/\n"), None);
        // In a container: its path outside, which is not to be seen from within.
        assert_eq!(limit("5:cpu,memory:/c\n0::/a/b\n"), Some(700));
        assert_eq!(limit("5:memory:/docker/x\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit("nonsense\n7\n::\n"), None);
    }
}
