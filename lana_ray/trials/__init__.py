"""What one trial of ``lana-ray search`` does, over any space of students and by any search method."""
