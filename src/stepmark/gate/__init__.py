"""Two sides measured in turns on this machine: did a change make the loop slower?"""
