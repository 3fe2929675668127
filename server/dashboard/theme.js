/* Light or dark before anything is drawn. Not a module: those run late, and the page would flash. */
(function () {
    try {
        const chosen = localStorage.getItem("graft.theme");
        if (chosen === "light" || chosen === "dark") {
            document.documentElement.dataset.theme = chosen;
        }
    } catch {
        /* storage is switched off: the system's choice */
    }
})();
