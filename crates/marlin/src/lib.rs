//! metal-marlin
