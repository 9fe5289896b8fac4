//! The index file as redb sees it, with every page compared to what was last
//! written there, or first read. redb itself looks at its checksums only when
//! it repairs, and a wrong bit in a page may hide rows without a sign.
//!
//! What does not match is an error without a number: damage, not the disk's.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::sums::{Ledger, PAGE, Sums, UNKNOWN, ZEROS, pages, sums_of};

#[derive(Debug)]
pub(super) struct CheckedFile {
    inner: Box<dyn StorageBackend>,
    sums: Arc<Sums>,
}

impl CheckedFile {
    /// Opens the file at `path`, or creates it.
    pub(super) fn open(path: &Path, sums: Arc<Sums>) -> Result<CheckedFile, redb::Error> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        sums.begin(&file.metadata()?);
        let inner: Box<dyn StorageBackend> = Box::new(FileBackend::new(file)?);
        #[cfg(test)]
        let inner = crate::cache::power_loss_tests::recorded(inner);
        Ok(CheckedFile { inner, sums })
    }

    #[cfg(test)]
    pub(super) fn replace_inner(&mut self, inner: Box<dyn StorageBackend>) {
        self.inner = inner;
    }

    fn read_pages(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(start, out)?;
        if self.sums.accept(start, out) {
            return Ok(());
        }
        // Somebody may have been writing there.
        let _ledger = self.sums.ledger();
        self.read_pages_at_rest(start, out)
    }

    /// While nobody writes.
    fn read_pages_at_rest(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(start, out)?;
        if self.sums.accept(start, out) {
            return Ok(());
        }
        self.sums.doubt();
        let said = format!("a page of bytes {start} to {} is damaged", start + out.len() as u64);
        Err(io::Error::new(io::ErrorKind::InvalidData, said))
    }

    /// The sums of all pages that `data` reaches, with it in them.
    fn sums_with(&self, ledger: &mut Ledger, offset: u64, data: &[u8]) -> io::Result<Vec<u32>> {
        let mut sums = Vec::with_capacity(pages(data.len() as u64) as usize + 1);
        let mut at = 0;
        while at < data.len() {
            let within = ((offset + at as u64) % PAGE) as usize;
            let part = &data[at..data.len().min(at + PAGE as usize - within)];
            let page = (offset + at as u64) / PAGE;
            at += part.len();
            if part.len() == PAGE as usize {
                ledger.partial = ledger.partial.take().filter(|(partial, _)| *partial != page);
                sums.extend(sums_of(part));
                continue;
            }
            let mut whole = match ledger.partial.take() {
                Some((partial, whole)) if partial == page => whole,
                _ => self.whole_page(page)?,
            };
            whole[within..within + part.len()].copy_from_slice(part);
            sums.extend(sums_of(&whole));
            ledger.partial = Some((page, whole));
        }
        Ok(sums)
    }

    /// A page, with zeros where the file ends.
    fn whole_page(&self, page: u64) -> io::Result<Vec<u8>> {
        let start = page * PAGE;
        let there = self.inner.len()?.saturating_sub(start).min(PAGE) as usize;
        let mut whole = vec![0; PAGE as usize];
        self.read_pages_at_rest(start, &mut whole[..there])?;
        Ok(whole)
    }
}

impl StorageBackend for CheckedFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = offset - offset % PAGE;
        let end = offset.saturating_add(out.len() as u64);
        if start == offset && end.is_multiple_of(PAGE) {
            return self.read_pages(start, out);
        }
        let whole = pages(end).saturating_mul(PAGE).min(self.inner.len()?).max(end);
        let mut around = vec![0; (whole - start) as usize];
        self.read_pages(start, &mut around)?;
        out.copy_from_slice(&around[(offset - start) as usize..][..out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let ledger = &mut *self.sums.ledger();
        ledger.partial = None;
        let old = self.inner.len()?;
        if len < old {
            // Cut off while pages are there that have no sum, rather than the
            // other way round; the page that is cut through has another one.
            self.sums.resize(ledger, len / PAGE, UNKNOWN);
            let set = self.inner.set_len(len);
            let left = if set.is_ok() { len } else { old };
            self.sums.resize(ledger, pages(left), UNKNOWN);
            return set;
        }
        self.inner.set_len(len)?;
        self.sums.resize(ledger, pages(len), *ZEROS);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let unsynced = std::mem::take(&mut self.sums.ledger().unsynced);
        let synced = self.inner.sync_data();
        if synced.is_err() {
            // The kernel may have dropped what it could not write.
            let ledger = &mut *self.sums.ledger();
            for pages in unsynced {
                let count = (pages.end - pages.start) as usize;
                self.sums.set(ledger, pages.start, &vec![UNKNOWN; count]);
            }
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let ledger = &mut *self.sums.ledger();
        let sums = self.sums_with(ledger, offset, data)?;
        let first = offset / PAGE;
        let end = first + sums.len() as u64;
        self.sums.expect(ledger, first, sums.len());
        match ledger.unsynced.last_mut() {
            Some(last) if (last.start..=last.end).contains(&first) => last.end = last.end.max(end),
            _ => ledger.unsynced.push(first..end),
        }
        let written = self.inner.write(offset, data);
        if written.is_ok() {
            self.sums.set(ledger, first, &sums);
        } else {
            ledger.partial = None;
            self.sums.set(ledger, first, &vec![UNKNOWN; sums.len()]);
        }
        written
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
