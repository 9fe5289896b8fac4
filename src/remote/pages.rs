//! Whether a listing goes on: one that never ends would fill memory and disk.

use super::{ErrorKind, ListPage, RemoteError};

/// Pages of one folder's listing. At 1,000 names each this is more than the
/// largest flat dataset has, and what a folder can be opened with.
const PAGES_MAX: u64 = 20_000;

/// Pages without a name in a row. S3 sends some where much was deleted.
const EMPTY_PAGES_MAX: u64 = 1_000;

/// The pages of one listing so far.
#[derive(Debug)]
pub struct Pages {
    pages: u64,
    empty_pages: u64,
    /// A token that came before, replaced ever more rarely: whatever the
    /// length of a cycle, one of them stays long enough to be met again.
    mark: Option<String>,
    next_mark: u64,
}

impl Default for Pages {
    fn default() -> Self {
        Pages { pages: 0, empty_pages: 0, mark: None, next_mark: 1 }
    }
}

impl Pages {
    /// Checks the next page of the listing of `prefix`.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] if the listing repeats itself, and
    /// [`ErrorKind::Invalid`] if it has no end in sight.
    pub fn check(&mut self, prefix: &str, page: &ListPage) -> Result<(), RemoteError> {
        let Some(next) = &page.next else { return Ok(()) };
        self.pages += 1;
        let is_empty = page.objects.is_empty() && page.prefixes.is_empty();
        self.empty_pages = if is_empty { self.empty_pages + 1 } else { 0 };
        if self.mark.as_ref() == Some(next) {
            let message = format!("the listing of {prefix:?} repeats itself");
            return Err(RemoteError::new(ErrorKind::Transient, message));
        }
        if self.empty_pages >= EMPTY_PAGES_MAX || self.pages >= PAGES_MAX {
            let message = format!("the listing of {prefix:?} has no end: {} pages", self.pages);
            return Err(RemoteError::new(ErrorKind::Invalid, message));
        }
        if self.pages == self.next_mark {
            self.mark = Some(next.clone());
            self.next_mark *= 2;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages that pass, with one name each or none, before the listing is given up.
    fn passing(token: impl Fn(u64) -> String, is_empty: bool) -> (u64, ErrorKind) {
        let mut pages = Pages::default();
        for n in 0.. {
            let prefixes = if is_empty { Vec::new() } else { vec!["a/".to_owned()] };
            let page = ListPage { objects: Vec::new(), prefixes, next: Some(token(n)) };
            if let Err(error) = pages.check("p/", &page) {
                return (n, error.kind);
            }
        }
        unreachable!("it ends")
    }

    #[test]
    fn a_cycle_is_met_after_a_few_rounds() {
        assert_eq!(passing(|_| "a".to_owned(), false), (1, ErrorKind::Transient));
        for length in [2, 3, 7, 100] {
            let (pages, kind) = passing(|n| (n.max(5) % length).to_string(), false);
            assert_eq!(kind, ErrorKind::Transient);
            assert!(pages <= 5 + 3 * length, "{pages} pages of {length}");
        }
    }

    #[test]
    fn a_listing_without_end_is_given_up() {
        let fresh = |n: u64| n.to_string();
        assert_eq!(passing(fresh, true), (EMPTY_PAGES_MAX - 1, ErrorKind::Invalid));
        assert_eq!(passing(fresh, false), (PAGES_MAX - 1, ErrorKind::Invalid));
    }

    #[test]
    fn a_long_listing_that_ends_is_right() {
        let mut pages = Pages::default();
        for n in 0..PAGES_MAX - 1 {
            let page = ListPage {
                prefixes: vec!["a/".to_owned()],
                next: Some(n.to_string()),
                ..ListPage::default()
            };
            pages.check("", &page).unwrap();
        }
        pages.check("", &ListPage::default()).unwrap();
    }
}
