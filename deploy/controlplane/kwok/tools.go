//go:build tools

// Package kwok keeps kwok among this module's requirements, so that go.sum pins what it is built from.
package kwok

import _ "sigs.k8s.io/kwok/cmd/kwok"
