"""Second-order information as linear operators, and solvers over them."""
