//go:build tools

// Package prometheus keeps Prometheus and promtool among this module's requirements, so that go.sum pins every
// source file that they are built from.
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
