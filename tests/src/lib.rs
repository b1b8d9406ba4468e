//! Whole-system tests, scripted clients, fuzz targets and benches.
