"""Training of whole networks: the teacher's adaptation and the students' fine-tuning."""
