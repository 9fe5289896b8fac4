//! One name in a folder: what is known of it, and else asking the remote for it.

use std::time::{Duration, Instant};

use super::CacheError;
use super::listing::{Changes, FolderUpdate};
use super::lock;
use super::metadata::{Child, Tree, is_passing};
use super::names;
use super::record::NodeId;
use crate::admission::Class;
use crate::remote::{ErrorKind, Key, ListRequest};

/// Lookups in a folder that was never listed before its listing is started
/// behind them: who opens three files pays for three, who goes on pays once.
const POINT_LOOKUPS_BEFORE_LISTING: u32 = 3;

/// Names of such a folder that are asked for one by one: more, as of a listing that broke
/// off, cost less by another listing.
const ASKED_ANEW_MAX: usize = 16;

/// How long the absence of a name is trusted in a folder that was not listed.
const POINT_ABSENCE_TTL: Duration = Duration::from_secs(1);

impl Tree {
    /// What is known of `name` in `parent`. Does not ask the remote.
    pub fn child(&self, parent: NodeId, name: &str) -> Result<Child, CacheError> {
        let losses = self.index.losses();
        let look = || self.child_if(parent, name, |valid_for| !valid_for.is_zero());
        let child = self.noting_absence(parent, name, look)?;
        // A listing that the lost index had says nothing of what the next one lacks.
        Ok(if self.index.losses() == losses { child } else { Child::Unknown })
    }

    /// What `look` finds. Somebody will believe that a name is absent: that is noted, so
    /// that they hear of it if it comes before its time.
    fn noting_absence(
        &self,
        parent: NodeId,
        name: &str,
        look: impl Fn() -> Result<Child, CacheError>,
    ) -> Result<Child, CacheError> {
        match look()? {
            Child::Absent(valid_for) if !valid_for.is_zero() && names::is_showable(name) => {
                self.store.absences().note(parent, name);
                look()
            }
            found => Ok(found),
        }
    }

    fn child_if(
        &self,
        parent: NodeId,
        name: &str,
        accept: impl Fn(Duration) -> bool,
    ) -> Result<Child, CacheError> {
        if !names::is_showable(name) {
            return Ok(Child::Absent(self.ttl));
        }
        let folder = self.index.folder(parent)?.unwrap_or_default();
        let listed_for = self.listing_valid_for(&folder);
        match self.index.entry(parent, name)? {
            Some(entry) => {
                let valid_for = listed_for.unwrap_or_default().max(self.seen_valid_for(&entry));
                if accept(valid_for) {
                    return Ok(Child::Known(self.entry_node(
                        parent,
                        name.to_owned(),
                        entry,
                        valid_for,
                    )?));
                }
            }
            None => {
                if let Some(valid_for) = listed_for.filter(|valid_for| accept(*valid_for)) {
                    return Ok(Child::Absent(valid_for));
                }
            }
        }
        Ok(Child::Unknown)
    }

    /// Finds `name` in `parent`, asking the remote if need be.
    pub async fn lookup(&self, parent: NodeId, name: &str) -> Result<Child, CacheError> {
        let losses = self.index.losses();
        let found = self.lookup_once(parent, name).await;
        if self.index.losses() == losses {
            return found;
        }
        // Half of the answer may have been in the index that was lost.
        self.lookup_once(parent, name).await
    }

    async fn lookup_once(&self, parent: NodeId, name: &str) -> Result<Child, CacheError> {
        match self.child(parent, name)? {
            Child::Unknown => {}
            known => return Ok(known),
        }
        let shows_old = self.shows_old(parent)?;
        if shows_old {
            self.revalidate(parent);
            let known = self.child_if(parent, name, |_| true)?;
            if matches!(known, Child::Known(_)) || self.is_listing_paused() {
                return Ok(known);
            }
        }
        // Only a listing tells which object stands beside a folder of its name.
        let is_listed_first = !shows_old && self.was_listed(parent)?;
        if is_listed_first || names::behind_suffix(name).is_some() {
            self.refresh(parent, Class::Demand).await?;
        } else {
            if !self.was_listed(parent)? {
                self.count_point_lookup(parent);
            }
            if let Err(error) = self.point_lookup(parent, name).await {
                // As with listings: what is known already stands in.
                let known = self.child_if(parent, name, |_| true)?;
                let stands_in = shows_old || matches!(known, Child::Known(_));
                if !is_passing(&error) || !stands_in {
                    return Err(error);
                }
                *lock(&self.listing_failed) = Some(Instant::now());
                return Ok(known);
            }
        }
        // Whatever the answer's age is by now, it is the newest there is.
        let look = || self.child_if(parent, name, |_| true);
        match self.noting_absence(parent, name, look)? {
            Child::Unknown => Ok(Child::Absent(POINT_ABSENCE_TTL.min(self.ttl))),
            known => Ok(known),
        }
    }

    fn count_point_lookup(&self, folder: NodeId) {
        let mut counts = lock(&self.point_lookups);
        let count = counts.get_or_insert_mut(folder, || 0);
        *count += 1;
        if *count == POINT_LOOKUPS_BEFORE_LISTING + 1 {
            drop(counts);
            drop(self.listing(folder, Class::Ahead)); // Runs by itself.
        }
    }

    /// Asks for one name: as an object and as a folder, side by side.
    async fn point_lookup(&self, parent: NodeId, name: &str) -> Result<(), CacheError> {
        match self.point_lookup_once(parent, name).await {
            // As with listings: by now there is another index.
            Err(error) if error.is_of_index() => self.point_lookup_once(parent, name).await,
            looked_up => looked_up,
        }
    }

    async fn point_lookup_once(&self, parent: NodeId, name: &str) -> Result<(), CacheError> {
        let key = format!("{}{name}", self.prefix(parent)?);
        let below = ListRequest {
            prefix: format!("{key}/"),
            recursive: true,
            max_keys: Some(1),
            ..ListRequest::default()
        };
        let key = Key(key);
        let began_ms = self.clock.next_ms();
        let (object, below) = tokio::join!(self.remote.head(&key), self.remote.list(&below));
        // A folder of the store's own is there even if it is empty.
        let is_own_folder = matches!(&object, Ok(meta) if meta.key.0.ends_with('/'));
        let is_folder = match &below {
            _ if is_own_folder => true,
            Ok(page) => !page.objects.is_empty() || !page.prefixes.is_empty(),
            Err(error) if error.kind == ErrorKind::NotFound => false,
            // An object that was found needs no second answer.
            Err(error) if object.is_err() => return Err(error.clone().into()),
            Err(_) => false,
        };
        // A folder is gone only if the remote said so.
        let is_no_folder = !is_folder && below.is_ok();
        let object = match object {
            Ok(meta) => Some(meta).filter(|_| !is_own_folder),
            Err(error) if error.kind == ErrorKind::NotFound || is_folder => None,
            Err(error) => return Err(error.into()),
        };
        let name = name.to_owned();
        self.write(move |index| {
            index.write(|write| {
                if write.is_superseded(parent)? {
                    return Ok(Changes::default());
                }
                let mut update = FolderUpdate::begin(write, parent, began_ms)?;
                if is_no_folder {
                    update.put_no_folder(&name)?;
                }
                if is_folder {
                    update.see_folder(&name)?;
                }
                match &object {
                    Some(meta) => update.put_object(&name, meta)?,
                    None if !is_folder => update.put_absent(&name)?,
                    None => {}
                }
                update.end()
            })
        })
        .await
    }

    /// Asks anew for what is known of a folder that was never listed: for each name, or
    /// for all of it if there are many.
    pub(super) async fn ask_anew(&self, folder: NodeId) -> Result<(), CacheError> {
        let known = self.index.entries_after(folder, None, ASKED_ANEW_MAX + 1)?;
        if known.len() > ASKED_ANEW_MAX || self.listings.under_way(folder, Class::Demand).is_some()
        {
            return self.list_anew(folder).await;
        }
        for (name, entry) in known {
            let key_name = entry.object.and_then(|attr| attr.key_name);
            self.point_lookup(folder, key_name.as_ref().unwrap_or(&name)).await?;
        }
        Ok(())
    }
}
