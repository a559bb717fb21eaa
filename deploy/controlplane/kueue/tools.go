//go:build tools

// Package controlplane keeps Kueue's own performance test among this module's requirements, so that go.sum pins
// every source file that it is built from. Only the benchmarks use it.
package controlplane

import (
	_ "sigs.k8s.io/kueue/test/performance/scheduler/minimalkueue"
	_ "sigs.k8s.io/kueue/test/performance/scheduler/runner"
)
