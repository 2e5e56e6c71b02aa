"""What a finished run gives: subnetworks, measured and written as folders."""
