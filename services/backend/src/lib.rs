//! Owns block devices; serves rings and grants leases.
